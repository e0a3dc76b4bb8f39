"""Formats of cells, and one table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io

import pytest

from sweeps.analysis.statistics import Estimate
from sweeps.reporting.model import Cell, Column, Kind, Table, as_csv, as_latex, as_markdown, format_cell

TABLE = Table(
    "some",
    "Some & more",
    (Column("method_x"), Column("all", "percent"), Column("gain", "points"), Column("p", "p")),
    (
        ("a|b", Estimate(0.5, 0.49, 0.51), Estimate(0.02, -0.01, 0.05), 0.0004),
        ("50%_#", Estimate(0.25), None, 0.04),
    ),
    "A note.",
    frozenset({0}),
)


@pytest.mark.parametrize(
    ("cell", "kind", "text"),
    [
        (None, "percent", "-"),
        (0.12345, "percent", "12.35"),
        (Estimate(0.5, 0.45, 0.55), "percent", "50.00 ±5.00"),
        (Estimate(0.5), "percent", "50.00"),
        (Estimate(-0.01, -0.02, 0.0), "points", "-1.00 [-2.00, +0.00]"),
        (0.0, "points", "+0.00"),
        (-1.1e-16, "points", "+0.00"),
        (-0.00004, "gain", "+0.00"),
        (-0.00006, "points", "-0.01"),
        (Estimate(0.01, -1e-9, 0.02), "points", "+1.00 [+0.00, +2.00]"),
        (-1e-17, "percent", "0.00"),
        (Estimate(-0.01, -0.02, 0.0), "gain", "-1.00 ±1.00"),
        (Estimate(0.01), "gain", "+1.00"),
        (0.0009, "p", "< 0.001"),
        (0.05, "p", "0.050"),
        (0.1234567, "number", "0.123"),
        (0.4384, "loma", "0.438"),
        (1.17e29, "loma", "1.17e+29"),
        (12, "count", "12"),
        ("los", "text", "los"),
    ],
)
def test_cells_are_formatted_by_the_kind_of_their_column(cell: Cell, kind: Kind, text: str) -> None:
    assert format_cell(cell, kind) == text


def test_markdown_escapes_cells_and_aligns_numbers() -> None:
    lines = as_markdown(TABLE).splitlines()
    assert lines[0] == "## Some & more"
    assert lines[3] == "| --- | ---: | ---: | ---: |"
    assert lines[4] == "| **a\\|b** | **50.00 ±1.00** | **+2.00 [-1.00, +5.00]** | **< 0.001** |"
    assert lines[-1] == "A note."


def test_strong_cells_are_bold_unless_empty() -> None:
    table = Table("t", "T", (Column("a"), Column("b")), (("x", ""),), strong=frozenset({0}))
    assert as_markdown(table).splitlines()[4] == "| **x** |  |"
    one = Table("t", "T", (Column("a"), Column("b")), (("x", "y"),), strong_cells=frozenset({(0, 1)}))
    assert as_markdown(one, heading="").splitlines()[2] == "| x | **y** |"
    assert r"x & \textbf{y} \\" in as_latex(one)


def test_latex_is_escaped_and_uses_booktabs() -> None:
    text = as_latex(TABLE)
    assert r"50\%\_\# & 25.00 & - & 0.040 \\" in text
    assert r"\textbf{50.00 $\pm$1.00}" in text
    assert r"\caption{Some \& more}" in text
    assert r"method\_x & all & gain & p \\" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_csv_has_unrounded_fractions_and_columns_for_intervals() -> None:
    found = list(csv.DictReader(io.StringIO(as_csv(TABLE))))
    assert list(found[0]) == ["method_x", "all", "all low", "all high", "gain", "gain low", "gain high", "p"]
    assert (found[0]["all"], found[0]["all low"]) == ("0.5", "0.49")
    assert (found[1]["all"], found[1]["all low"], found[1]["gain"]) == ("0.25", "", "")
