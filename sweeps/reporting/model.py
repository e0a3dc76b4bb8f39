"""Content of a report as plain data, and tables as Markdown, LaTeX (booktabs) and CSV.

Tables have typed cells, and figures are the series that they show; the CSV file of a figure is made from these series.
Tables are rendered here and not by pandas for the reasons in docs/architecture.md.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lt_train.metrics import ACCURACIES, Score
from sweeps.analysis.statistics import Estimate

Kind = Literal["text", "percent", "points", "gain", "number", "change", "loma", "count", "p"]
"""Format of a column. Percent, points and gain show fractions times 100; points, gain and change have a sign. Estimates
are shown with half the width of their interval, in a points or change column with its ends. A number and a change have
3 significant digits, loma 3 decimals."""


Cell = str | int | float | Estimate | None
"""None is an unknown value, shown as a dash."""


@dataclass(frozen=True)
class Column:
    """One column of a table. An `optional` one is left out where a terminal is too narrow."""

    title: str
    kind: Kind = "text"
    optional: bool = False


def score_columns(
    scores: Iterable[Score], kind: Literal["percent", "points", "gain"] = "percent"
) -> tuple[Column, ...]:
    """One column per score, optional beside accuracies; metrics that are not in percent are shown as plain numbers."""
    plain: Kind = "number" if kind == "percent" else "change"
    return tuple(Column(one.title, kind if one.percent else plain, one not in ACCURACIES) for one in scores)


@dataclass(frozen=True)
class Table:
    """A table. `name` is that of its files, `note` is shown below it; `strong` rows and `strong_cells` are bold."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    strong: frozenset[int] = frozenset()
    strong_cells: frozenset[tuple[int, int]] = frozenset()

    def is_strong(self, row: int, column: int) -> bool:
        """Whether a cell is bold."""
        return row in self.strong or (row, column) in self.strong_cells


@dataclass(frozen=True)
class Series:
    """One series of a panel. None in `y` is a gap.

    Attributes:
        style: index of colour, marker and dash.
        value: shades points or cells, and sizes points, by rank.
        label: text of single cells.
        faint: drawn in the background.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: Literal["line", "points", "hollow", "steps", "bars", "cells", "cross", "star"] = "line"
    style: int = 0
    value: Sequence[float] | None = None
    label: Sequence[str] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Line:
    """A reference line across a panel at `x` or `y`."""

    name: str
    x: float | None = None
    y: float | None = None
    style: int = 0


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    title: str = ""
    lines: tuple[Line, ...] = ()
    x_log: bool = False
    y_log: bool = False
    x_ticks: Mapping[float, str] | None = None
    y_ticks: Mapping[float, str] | None = None
    value_label: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels, `columns` in a row. `alt` describes the figure in words; `data` replaces the table of its series."""

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    columns: int = 2
    data: Table | None = None

    def table(self) -> Table:
        """The plotted data, one row per point."""
        if self.data is not None:
            return self.data
        titles = ("panel", "series", self.panels[0].x_label or "x", self.panels[0].y_label or "y")
        columns = [*map(Column, titles), *map(Column, ("value", "label"))]
        return Table(self.name, self.title, tuple(columns), tuple(self._points()))

    def _points(self) -> Iterator[tuple[Cell, ...]]:
        for panel in self.panels:
            for one in panel.series:
                beside = [one.value, one.label]
                for place, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
                    extra = [None if values is None else values[place] for values in beside]
                    yield (panel.title, one.name, (panel.x_ticks or {}).get(x, x), y, *extra)
            for line in panel.lines:
                yield (panel.title, line.name, line.x, line.y, None, None)


@dataclass(frozen=True)
class Verdict:
    """The start of a report: the outcome and its limits.

    Attributes:
        headline: the winner and its accuracy.
        about: what was searched on which data.
        selected: how the winner was selected.
        params: its searched values.
        numbers: its accuracy by split.
        gains: over baselines and runner-up, with tests.
        cautions: limits of these numbers.
        unreadable: files that could not be read, and what the report lacks; they are among the cautions, too.
    """

    headline: str
    about: str
    selected: str
    params: str
    numbers: Table | None
    gains: Table | None
    cautions: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One section of a report."""

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class SweepReport:
    """The report of one sweep."""

    name: str
    verdict: Verdict
    sections: tuple[Section, ...] = field(default=())

    def tables(self) -> Iterator[Table]:
        """All tables, those of the verdict first."""
        yield from (table for table in (self.verdict.numbers, self.verdict.gains) if table is not None)
        for section in self.sections:
            yield from section.tables

    def figures(self) -> Iterator[Figure]:
        """All figures, in order."""
        for section in self.sections:
            yield from section.figures


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
}


def percent(value: float | None) -> str:
    """`79.48`; a dash for None."""
    return "-" if value is None else f"{_hundredths(value):.2f}"


def points(value: float) -> str:
    """`+4.16`; float rounding errors of 0 are shown as `+0.00`."""
    return f"{_hundredths(value):+.2f}"


def _hundredths(value: float) -> float:
    """In percent, rounded as shown; 0 has no sign."""
    return round(100 * value, 2) + 0.0


def format_cell(cell: Cell, kind: Kind) -> str:
    """`79.48 ±0.02`, `+4.16 [+4.14, +4.17]`, `< 0.001`; a dash for None."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        if cell.low is None or cell.high is None:
            return format_cell(cell.value, kind)
        if kind in ("points", "change"):
            return f"{_number(cell.value, kind)} [{_number(cell.low, kind)}, {_number(cell.high, kind)}]"
        scale = 100 if kind in ("percent", "gain") else 1
        half = scale * (cell.high - cell.low) / 2
        return (
            f"{_number(cell.value, kind)} ±{half:.2f}" if scale == 100 else f"{_number(cell.value, kind)} ±{half:.3g}"
        )
    return _number(cell, kind)


def _number(value: float, kind: Kind) -> str:
    if kind == "percent":
        return percent(value)
    if kind in ("points", "gain"):
        return points(value)
    if kind == "change":
        return f"{value + 0.0:+.3g}"
    if kind == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if kind == "count":
        return f"{value:.0f}"
    if kind == "loma":
        return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_markdown(table: Table, heading: str = "## ") -> str:
    """A Markdown table with its note, under its title unless `heading` is empty."""
    lines = [
        _row([column.title for column in table.columns]),
        _row(["---" if column.kind == "text" else "---:" for column in table.columns]),
    ]
    for number, row in enumerate(table.rows):
        cells = [text.replace("|", "\\|").replace("\n", " ") for text in _texts(table, row)]
        bold = [bool(cell) and table.is_strong(number, column) for column, cell in enumerate(cells)]
        lines.append(_row([f"**{cell}**" if strong else cell for cell, strong in zip(cells, bold, strict=True)]))
    title = [f"{heading}{table.title}", ""] if heading else []
    return "\n".join([*title, *lines, *(["", table.note] if table.note else [])]) + "\n"


def as_latex(table: Table) -> str:
    """A `table` environment; needs the package booktabs only."""
    places = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
    lines += [rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
    lines += [" & ".join(_tex(column.title) for column in table.columns) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        cells = [_tex(text) for text in _texts(table, row)]
        bold = [table.is_strong(number, column) for column in range(len(cells))]
        marked = (rf"\textbf{{{cell}}}" if strong else cell for cell, strong in zip(cells, bold, strict=True))
        lines.append(" & ".join(marked) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines + ([f"% {table.note}"] if table.note else [])) + "\n"


def as_csv(table: Table) -> str:
    """Unrounded numbers, fractions of 1. An estimate takes three columns; an unknown value is empty."""
    wide = [any(isinstance(row[place], Estimate) for row in table.rows) for place in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    for column, three in zip(table.columns, wide, strict=True):
        header += [column.title, f"{column.title} low", f"{column.title} high"] if three else [column.title]
    writer.writerow(header)
    for row in table.rows:
        values: list[object] = []
        for cell, three in zip(row, wide, strict=True):
            if isinstance(cell, Estimate):
                values += [cell.value, cell.low, cell.high]
            else:
                values += [cell, None, None] if three else [cell]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def _texts(table: Table, row: tuple[Cell, ...]) -> list[str]:
    return [format_cell(cell, column.kind) for cell, column in zip(row, table.columns, strict=True)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex(text: str) -> str:
    return re.sub("[" + re.escape("".join(_LATEX)) + "]", lambda found: _LATEX[found[0]], text).replace("\n", " ")
