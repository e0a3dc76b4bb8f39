"""What a report says of the winner trained longer, in words, in a table and in the figure of its epochs."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sweeps
from sweeps.analysis.load import read_sweep
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec
from sweeps.reporting.write import Written, write

MakeSweep = Callable[..., SweepSpec]

MARK_UP = re.compile(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", re.DOTALL)


def fixed(make: MakeSweep, lr: float, epochs: int, **selection: Any) -> SweepSpec:
    """One setting on three seeds, so that what becomes of it is known; its smooth factor is .7."""
    return make(
        method={"kind": "los", "smooth_factor": 0.7},
        training={"epochs": epochs},
        search={"trials": 1, "algorithm": "grid", "space": {"method.lr": {"choice": [lr]}}},
        selection={"seeds": 3, "extended_training": 3} | selection,
    )


def reported(spec: SweepSpec) -> tuple[Result, Written, str]:
    """The result, the report, and what of its page a reader reads."""
    result = sweeps.run(spec)
    written = write([Path(spec.storage) / spec.name], None)
    return result, written, read(written)


def read(written: Written) -> str:
    return " ".join(html.unescape(MARK_UP.sub(" ", written.page.read_text())).split())


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def points(gap: Any) -> str:
    low, high = gap.ci95
    return f"{100 * gap.mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def test_a_winner_that_loses_when_it_trains_longer_stands_on_a_transient(small_sweep: MakeSweep) -> None:
    result, written, page = reported(fixed(small_sweep, 0.01, 20))
    extended = result.extended
    assert extended is not None
    assert (extended.ends, extended.beside_start) == ("falls", "below")
    assert extended.over_start is not None
    assert f"Trained three times as long it reaches {100 * extended.objective:.2f} %" in page
    assert (
        f"val acc_all at its last epoch, {points(extended.change)} against the winner, on test "
        f"{points(extended.behind['acc_all'])}, so the winner stands on a transient." in page
    )
    assert f"It falls below the stage-1 head: {points(extended.over_start)}." in page
    assert "Its own curve peaks at epoch " in page
    table = {row["accuracy"]: row for row in rows(written.page.parent / "tables" / "longer.csv")}
    assert set(table) == {"val all", "test all", "test many", "test medium", "test few"}
    assert float(table["val all"]["change"]) == pytest.approx(extended.change.mean)
    assert float(table["val all"]["longer minus vanilla"]) == pytest.approx(extended.over_start.mean)
    for split in ("all", "many", "medium", "few"):
        row, metric = table[f"test {split}"], f"acc_{split}"
        assert float(row["three times as long, 60 epochs"]) == pytest.approx(getattr(extended.mean, metric))
        assert float(row["change"]) == pytest.approx(extended.behind[metric].mean)
    (figure,) = [one for one in written.reports[0].figures() if one.name == "epochs"]
    for panel in figure.panels:
        curves = {one.name: one for one in panel.series}
        assert [len(curves[name].x) for name in ("all", "all, three times as long")] == [20, 60]
    last = curves["all, three times as long"].y[-1]
    assert last == pytest.approx(100 * (extended.mean.acc_all or 0))


@pytest.mark.parametrize(
    ("lr", "epochs", "ends", "said"),
    [
        (0.01, 2, "gains", "so it gains further, and was not trained to its end."),
        (1e-6, 4, "level", "which is level: no transient."),
    ],
)
def test_a_winner_that_gains_further_or_stays(
    small_sweep: MakeSweep, lr: float, epochs: int, ends: str, said: str
) -> None:
    result, _, page = reported(fixed(small_sweep, lr, epochs))
    assert result.extended is not None
    assert result.extended.ends == ends
    assert said in page
    assert "stands on a transient" not in page


def test_where_the_best_epoch_counts_the_last_ones_are_compared(small_sweep: MakeSweep) -> None:
    spec = fixed(small_sweep, 0.01, 40, on="test", epoch="best")
    result, written, page = reported(spec)
    assert result.extended is not None
    assert "test acc_all at its last epoch" in page
    assert f"{points(result.extended.change)} against the winner at its own last epoch" in page
    sweep = read_sweep(Path(spec.storage) / spec.name)
    assert sweep.winner is not None
    assert any(record.epoch != 39 for record in sweep.winner.records), "else the best is the last"
    last = sum(record.test[-1][0] or 0 for record in sweep.winner.records) / 3
    assert result.extended.change.mean == pytest.approx((result.extended.mean.acc_all or 0) - last)
    assert result.extended.behind["acc_all"] == result.extended.change
    table = rows(written.page.parent / "tables" / "longer.csv")
    assert [row["accuracy"] for row in table] == ["test all", "test many", "test medium", "test few"]
    assert float(table[0]["change"]) == pytest.approx(result.extended.change.mean)
    assert float(table[0]["winner, 40 epochs"]) == pytest.approx(last)


def test_without_a_longer_run_the_report_says_why(small_sweep: MakeSweep) -> None:
    _, written, page = reported(fixed(small_sweep, 0.02, 8, extended=None))
    assert "No longer run was asked for (selection.extended_training is null)." in page
    assert not (written.page.parent / "tables" / "longer.csv").exists()


def test_one_that_failed_or_was_not_trained_yet_is_told_so(small_sweep: MakeSweep) -> None:
    spec = fixed(small_sweep, 0.02, 8)
    reported(spec)
    place = Path(spec.storage) / spec.name
    file = place / "ledger.jsonl"
    *others, last = file.read_text().splitlines(keepends=True)
    file.write_text("".join(others))
    page = read(write([place], None))
    assert "It was not trained longer yet; `lt-sweep resume small` trains it three times as long." in page
    line = json.loads(last)
    for run in line["runs"]:
        run |= {"failure": "diverged: in a test", "epoch": -1}
    file.write_text("".join([*others, json.dumps(line), "\n"]))
    page = read(write([place], None))
    assert "The run three times as long failed; the reason is at the end." in page
    assert "los, trial 0, trained longer 3 of 3" in page
    assert "settings failed and cannot win" not in page
    (place / "result.json").unlink()
    page = read(write([place], None))
    assert "In the end whoever wins is trained three times as long, to say where it leads." in page
    assert read_sweep(place).extended is None, "who wins is not known yet"


def test_what_trains_nothing_is_said_to_have_nothing_to_train_longer(small_sweep: MakeSweep) -> None:
    spec = small_sweep(
        method=None, methods=["vanilla"], search={"trials": 1, "space": {}}, selection={"extended_training": 3}
    )
    _, _, page = reported(spec)
    assert "It trains nothing: one run, and none that could be trained longer." in page


def test_runs_and_costs_count_it(small_sweep: MakeSweep) -> None:
    _, written, _ = reported(fixed(small_sweep, 0.02, 2))
    by_phase = {row["phase"]: row for row in rows(written.page.parent / "tables" / "runs_by_phase.csv")}
    assert (by_phase["trained longer"]["runs trained"], by_phase["trained longer"]["epochs"]) == ("3", "18")
    every = rows(written.page.parent / "data" / "runs.csv")
    assert [row["seed"] for row in every if row["phase"] == "extended"] == ["0", "1", "2"]
