"""Tables of results in a terminal and in Markdown: content, ranking, and that they fit a screen."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeps.analysis.matrix_table import MatrixCell, MatrixRow, MatrixTable
from sweeps.analysis.result import (
    Accuracies,
    ExtendedRun,
    Loma,
    MethodRow,
    Protocol,
    Result,
    Row,
    RunCounts,
    SeedAccuracies,
    TrialRow,
    Winner,
)
from sweeps.analysis.statistics import Comparison, Estimate, Trend
from sweeps.config.spec import SweepSpec
from sweeps.reporting.artifacts import running_note
from sweeps.reporting.model import as_markdown
from sweeps.reporting.result_tables import matrix_tables, method_table
from sweeps.reporting.terminal import comparison, matrix_overview, summary

LONGEST_NAME = "logit_adjust_loss"


def markdown(shown: Result) -> str:
    return as_markdown(method_table(shown), heading="")


def around(value: float, half: float | None) -> Estimate:
    return Estimate(value) if half is None else Estimate(value, value - half, value + half)


def gain_of(value: float, half: float | None, verdict: Any = "better") -> Comparison:
    return Comparison(around(value, half), None, "paired", 5, verdict)


def row(acc: float, half: float | None = 0.0011, **method: Any) -> Row:
    values = {"acc_all": acc, "acc_many": acc + 0.1, "acc_medium": acc - 0.1, "acc_few": None}
    means = {name: None if v is None else around(v, half) for name, v in values.items()}
    return Row(
        params=method,
        seeds=[5, 6] if half else [5],
        best_of=SeedAccuracies(**{**values, "acc_all": acc + 0.002}, seed=5, val_acc_all=acc, failure=None),
        mean=Accuracies(**means),
        loma=Loma(mean=7.5, cv=0.4),
    )


def method(name: str, acc: float, *, tied: bool = False, half: float | None = 0.0011, val: float = 0.0) -> MethodRow:
    gain = {"acc_all": gain_of(acc - 0.5, None if half is None else 0.01)}
    return MethodRow(
        **dict(row(acc, half, kind=name)),
        method=name,
        trial=7,
        searched={"method.lr": 0.01, "method.head.scale": 12.5},
        gain={"vanilla": gain},
        objective=val or acc,
        behind={},
        tied=tied,
        trials=24,
        failed_trials=0,
        runs=135,
    )


def result(*methods: MethodRow, baselines: dict[str, Row] | None = None) -> Result:
    first = {name: getattr(methods[0], name) for name in Winner.model_fields}
    return Result(
        sweep="table",
        spec_fingerprint="s",
        bank_fingerprint="b",
        protocol=Protocol(on="val", epoch="last", objective="mean", metric="acc_all", seeds=5, finalists=3),
        runs=RunCounts(finished=9, failed=0, shared=0),
        trials=[],
        winner=Winner(**first),
        methods=list(methods),
        baselines=baselines or {},
        seconds={"total": 12.0, "train": 3.0},
        notes=[],
    )


def lines_of(shown: Result) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison(shown))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_terminal_has_one_line_per_method_best_first() -> None:
    lines = lines_of(result(method("los", 0.8, val=0.83), method("tau_norm", 0.79, half=None), method("ce", 0.75)))
    assert lines[1].split() == ["method", "all", "many", "medium", "few", "best/5", "val"]
    assert lines[2].split() == ["los", "80.00", "±0.11", "90.00", "±0.11", "70.00", "±0.11", "-", "80.20", "83.00"]
    assert lines[3].split() == ["tau_norm", "79.00", "89.00", "69.00", "-", "79.20", "79.00"]
    assert lines[4].split()[0] == "ce"
    assert lines[5] == "winner: los, trial 7, lr=0.01 scale=12.5"
    assert "3 finalists on new seeds" in lines[6]


def test_ties_with_the_best_method_are_marked() -> None:
    lines = lines_of(result(method("los", 0.8, tied=True), method("las", 0.799, tied=True), method("ce", 0.75)))
    assert "intervals and ties (=) are over seeds of re-training: one backbone, one test set" in lines
    assert [line.startswith("=") for line in lines[2:5]] == [False, True, False]


def test_every_method_of_the_registry_fits_a_screen() -> None:
    names = [f"{LONGEST_NAME[:-2]}{number:02d}" for number in range(18)]
    lines = lines_of(result(*(method(name, 0.8 - place / 100) for place, name in enumerate(names))))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name, line in zip(names, lines[2:], strict=False):
        assert name in line


@pytest.mark.parametrize("name", ["los", LONGEST_NAME])
def test_no_number_is_cut_where_intervals_are_wide(name: str) -> None:
    """Rich silently truncates cells that do not fit; names fold instead."""
    baselines = {"vanilla": row(0.7, None, kind="vanilla"), LONGEST_NAME: row(0.6, 0.1234, kind="x")}
    several = result(method(name, 0.8, half=0.1234), method("ce", 0.75, half=0.1234), baselines=baselines)
    for lines in (lines_of(several), lines_of(result(method(name, 0.8, half=0.1234), baselines=baselines))):
        assert not [line for line in lines if "…" in line]
        assert max(map(len, lines)) <= 80
        (own,) = [line for line in lines if "80.00 ±12.34" in line]
        assert own.count("±12.34") == 3


def test_a_baseline_is_shown_unless_it_equals_a_method() -> None:
    baselines = {"vanilla": row(0.7, None, kind="vanilla"), "ce": row(0.72, kind="ce", lr=0.5)}
    methods = method("los", 0.8), method("vanilla", 0.7, half=None), method("ce", 0.75)
    shown = result(*methods, baselines=baselines)
    assert [line.split()[0] for line in lines_of(shown) if "(baseline)" in line] == ["ce"]
    assert [line.split()[1] for line in markdown(shown).splitlines() if "(baseline)" in line] == ["ce"]


def test_a_single_method_is_shown_with_its_baselines() -> None:
    lines = lines_of(result(method("los", 0.8), baselines={"vanilla": row(0.7, None, kind="vanilla")}))
    assert lines[1].split() == ["method", "statistic", "all", "many", "medium", "few", "LoMa", "cv"]
    assert lines[2].split()[:3] == ["vanilla", "one", "run"]
    assert lines[-5] == "winner: trial 7, lr=0.01 scale=12.5"


def test_texts_for_a_single_finalist_and_seed(small_sweep: Callable[..., SweepSpec]) -> None:
    shown = result(method("los", 0.8), method("ce", 0.7))
    protocol = shown.protocol.model_copy(update={"finalists": 1})
    shown = shown.model_copy(update={"protocol": protocol})
    matrix = MatrixTable(
        matrix="f", axis="x", methods=["los"], rows=[MatrixRow(value="1", sweep="s", protocol=protocol, cells={})]
    )
    spec = small_sweep(selection={"finalists": 1, "seeds": 1})
    assert "one finalist on new seeds" in " ".join(line.strip() for line in lines_of(shown))
    assert "; the best trial of each method ran again on new seeds" in markdown(shown)
    assert "one finalist of each method on new seeds" in as_markdown(matrix_tables(matrix)[-1], heading="")
    note = running_note(spec, Path("s"))
    assert "one seed per trial" in note
    assert "The best trial ran again on new seeds, and results are from those runs." in note


def test_a_gain_of_zero_has_no_minus_sign() -> None:
    nothing = {"acc_all": Comparison(Estimate(-1.1e-16, -0.00001, 0.00001), None, "paired", 5, "tied")}
    shown = result(method("los", 0.8).model_copy(update={"gain": {"ce": nothing}}))
    assert "gain over ce, points: all +0.00 [+0.00, +0.00]" in lines_of(shown)


def test_extreme_loma_values_do_not_break_the_table() -> None:
    wild = row(0.5).model_copy(update={"loma": Loma(mean=1.17e29, cv=123456.7)})
    lines = lines_of(result(method("los", 0.8), baselines={"ce": wild}))
    (own,) = [line for line in lines if "1.17e+29" in line]
    assert own.split()[-2:] == ["1.17e+29", "1.23e+05"]
    assert own.split()[1:4] == ["±95%", "50.00", "±0.11"]
    assert max(map(len, lines)) <= 80


def test_the_markdown_table_has_gains_and_parameters() -> None:
    baselines = {"vanilla": row(0.7, None, kind="vanilla")}
    text = markdown(result(method("los", 0.8), method("las", 0.799, tied=True), baselines=baselines))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    cells = dict(zip(header, (cell.strip() for cell in lines[2].strip("|").split("|")), strict=True))
    assert cells["method"] == "los"
    assert cells["all"] == "80.00 ±0.11"
    assert cells["few"] == "-"
    assert cells["best of 5"] == "80.20"
    assert cells["gain over vanilla"] == "+30.00 [+29.00, +31.00]"
    assert cells["parameters"] == "lr=0.01 scale=12.5"
    assert cells["trials"] == "24"
    assert lines[3].startswith("| las = |")
    assert lines[4].startswith("| vanilla (baseline) |")


@pytest.mark.parametrize("seeds", [1, 5])
def test_one_seed_has_no_interval(seeds: int) -> None:
    shown = result(method("los", 0.8, half=None), method("ce", 0.7, half=None))
    shown = shown.model_copy(update={"protocol": shown.protocol.model_copy(update={"seeds": seeds})})
    lines = lines_of(shown)
    assert any("intervals are over seeds" in line for line in lines) is (seeds > 1)
    over = "one seed" if seeds == 1 else "mean of 5 seeds"
    assert f"selected on val acc_all, last epoch, {over}, 3 finalists on new seeds" in lines
    title = "one seed" if seeds == 1 else "mean ±95% over 5 seeds"
    assert f"table: test accuracy in %, {title}, best first" in lines
    assert not any("1 seeds" in line for line in [*lines, *markdown(shown).splitlines()])


def extended(trend: str = "declining", over_start: Any = "worse") -> ExtendedRun:
    """The winner trained three times as long, with the same difference from the winner and from the stage-1 head."""
    return ExtendedRun(
        **dict(row(0.7, kind="los")),
        times=3,
        objective=around(0.7, 0.01),
        change=gain_of(-0.2667, 0.01, "worse"),
        trend=Trend(trend),
        over_start=gain_of(-0.2667, 0.01, over_start),
        test_change={},
    )


BELOW = 6
"""Lines that `lt-sweep run` prints below the table: what to do next."""


def summary_of(shown: Result) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(summary(shown, console, BELOW))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_summary_of_a_run_fits_a_screen_for_every_method_of_the_registry() -> None:
    names = [f"{LONGEST_NAME[:-2]}{number:02d}" for number in range(18)]
    whole = result(*(method(name, 0.8 - place / 100, tied=True) for place, name in enumerate(names)))
    whole = whole.model_copy(update={"extended": extended()})
    lines = summary_of(whole)
    assert len(lines) + BELOW == 24
    assert max(map(len, lines)) <= 80
    (place,) = [number for number, line in enumerate(lines) if "more; `lt-sweep table` shows all" in line]
    assert lines[place].split()[1] == str(18 - (place - 2))
    assert all(name in line for name, line in zip(names, lines[2:place], strict=False))
    assert [line for line in lines if line.startswith("winner: ")]
    assert "runs finished" in lines[-1]
    assert names[-1] in lines_of(whole)[19], "lt-sweep table shows all"


def test_the_summary_of_one_method_fits_a_screen_with_all_its_notes() -> None:
    shown = result(method("los", 0.8), baselines={"vanilla": row(0.7, None), "ce": row(0.7)})
    protocol = shown.protocol.model_copy(update={"on": "test"})
    trials = [TrialRow(number=0, params={}, objective=0.5, stopped=5, seeds=[])]
    shown = shown.model_copy(update={"extended": extended(), "protocol": protocol, "trials": trials})
    lines = summary_of(shown)
    assert lines == lines_of(shown), "nothing is hidden"
    assert len(lines) + BELOW <= 24
    many = {f"b{number}": row(0.7) for number in range(9)}
    cut = summary_of(shown.model_copy(update={"baselines": many}))
    assert len(cut) + BELOW <= 24
    assert any("more; `lt-sweep table` shows all" in line for line in cut)
    assert any(line.startswith("los") for line in cut), "the winner is never hidden"


@pytest.mark.parametrize(
    ("trend", "over_start", "text"),
    [
        ("declining", "worse", "declining (not converged)"),
        ("stable", "better", "stable (converged)"),
        ("improving", "tied", "improving (not converged)"),
        ("inconclusive", "undecided", "inconclusive with 2 seeds"),
    ],
)
def test_the_outcome_of_extended_training_is_one_line(trend: str, over_start: str, text: str) -> None:
    shown = result(method("los", 0.8), baselines={"vanilla": row(0.7, None)})
    lines = lines_of(shown.model_copy(update={"extended": extended(trend, over_start)}))
    assert f"trained 3x as long: -26.67 [-27.67, -25.67] on val, {text}" in lines
    assert any("below the stage-1 head" in line for line in lines) is (over_start == "worse")
    none = lines_of(shown.model_copy(update={"extended_skipped": "the extended run failed"}))
    assert "no extended training: the extended run failed" in none
    assert not any("extended" in line for line in lines_of(shown))


def test_a_matrix_of_four_sweeps_fits_a_screen() -> None:
    """The paper's Table 4: seven columns."""
    columns = ("vanilla", "ce", "focal", "ldam", "bs", "cb-bce", "los")
    ours = row(0.8)
    few = Accuracies(**dict(ours.mean) | {"acc_few": Estimate(0.85)})
    cells = {name: MatrixCell(mean=few, seeds=[5, 6], searched={}, best=name == "los") for name in columns}
    members = ("ce_steps", "ce_drw", "ldam_drw", "balanced_softmax")
    protocol = result(method("los", 0.8)).protocol
    trends = dict(zip(members, ("declining", "stable", "declining", "inconclusive"), strict=True))
    rows = [
        MatrixRow(
            value=one,
            sweep=f"table4-{one}",
            protocol=protocol,
            cells=cells,
            extended=extended(trends[one], "better"),
        )
        for one in members
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(matrix_overview(MatrixTable(matrix="table4", axis="stage1", methods=list(columns), rows=rows)))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines[-2:]).split()).endswith(
        "winners trained 3x as long: declining: ce_steps, ldam_drw; stable: ce_drw; inconclusive: balanced_softmax"
    )
