"""Extended training of the winner in a report: text, table and figure."""

from __future__ import annotations

import contextlib
import csv
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ledgers import cut, pack_lines

import sweeps
from lt_train.retrain.base import Pack, RunResult
from sweeps.analysis.load import read_sweep
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec
from sweeps.reporting.write import Written, write
from sweeps.store.ledger import Ledger

MakeSweep = Callable[..., SweepSpec]

MARK_UP = re.compile(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", re.DOTALL)


def fixed(make: MakeSweep, lr: float, epochs: int, **selection: Any) -> SweepSpec:
    """One trial on three seeds with a known outcome; its smooth factor is 0.7."""
    return make(
        method={"kind": "los", "smooth_factor": 0.7},
        training={"epochs": epochs},
        search={"trials": 1, "algorithm": "grid", "space": {"method.lr": {"choice": [lr]}}},
        selection={"seeds": 3, "extended_training": 3} | selection,
    )


def reported(spec: SweepSpec) -> tuple[Result, Written, str]:
    """The result, the report and the visible text of its page."""
    result = sweeps.run(spec)
    written = write([Path(spec.storage) / spec.name], None)
    return result, written, read(written)


def read(written: Written) -> str:
    return " ".join(html.unescape(MARK_UP.sub(" ", written.page.read_text())).split())


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def points(gap: Any) -> str:
    found = gap.difference
    return f"{100 * found.value:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def test_a_winner_that_declines_with_more_training_is_not_converged(small_sweep: MakeSweep) -> None:
    result, written, page = reported(fixed(small_sweep, 0.01, 20))
    extended = result.extended
    assert extended is not None
    assert extended.over_start is not None
    assert (extended.trend, extended.over_start.verdict) == ("declining", "worse")
    assert f"Trained 3x as long: {100 * extended.objective.value:.2f} %" in page
    assert (
        f"val acc_all at the last epoch, {points(extended.change)} against the winner "
        f"({points(extended.test_change['acc_all'])} on test): declining, so the winner has not converged." in page
    )
    assert f"It ends below the stage-1 head: {points(extended.over_start)}." in page
    assert "The accuracy curve of the winner peaks at epoch " in page
    table = {row["accuracy"]: row for row in rows(written.page.parent / "tables" / "extended.csv")}
    assert set(table) == {"val all", "test all", "test many", "test medium", "test few"}
    assert float(table["val all"]["change"]) == pytest.approx(extended.change.difference.value)
    assert float(table["val all"]["extended minus vanilla"]) == pytest.approx(extended.over_start.difference.value)
    for split in ("all", "many", "medium", "few"):
        row, metric = table[f"test {split}"], f"acc_{split}"
        assert float(row["3x as long, 60 epochs"]) == pytest.approx(getattr(extended.mean, metric).value)
        assert float(row["change"]) == pytest.approx(extended.test_change[metric].difference.value)
    (figure,) = [one for one in written.reports[0].figures() if one.name == "epochs"]
    for panel in figure.panels:
        curves = {one.name: one for one in panel.series}
        assert [len(curves[name].x) for name in ("all", "all, 3x as long")] == [20, 60]
    last = curves["all, 3x as long"].y[-1]
    assert last == pytest.approx(100 * (extended.mean.acc_all.value or 0))


@pytest.mark.parametrize(
    ("lr", "epochs", "trend", "text"),
    [
        (0.01, 2, "improving", "improving, so the winner has not converged."),
        (1e-6, 4, "stable", "stable, so the winner has converged."),
    ],
)
def test_a_winner_that_improves_or_stays(small_sweep: MakeSweep, lr: float, epochs: int, trend: str, text: str) -> None:
    result, _, page = reported(fixed(small_sweep, lr, epochs))
    assert result.extended is not None
    assert result.extended.trend == trend
    assert text in page
    assert "declining" not in page


def test_with_the_best_epoch_selected_the_last_epochs_are_compared(small_sweep: MakeSweep) -> None:
    spec = fixed(small_sweep, 0.01, 40, on="test", epoch="best")
    result, written, page = reported(spec)
    assert result.extended is not None
    assert "test acc_all at the last epoch" in page
    assert f"{points(result.extended.change)} against the winner at its own last epoch" in page
    sweep = read_sweep(Path(spec.storage) / spec.name)
    assert sweep.winner is not None
    assert any(record.epoch != 39 for record in sweep.winner.records), "else the best is the last"
    last = sweep.winner.ended()[:, 0].mean()
    assert result.extended.change.difference.value == pytest.approx((result.extended.mean.acc_all.value or 0) - last)
    assert result.extended.test_change["acc_all"].difference == result.extended.change.difference
    table = rows(written.page.parent / "tables" / "extended.csv")
    assert [row["accuracy"] for row in table] == ["test all", "test many", "test medium", "test few"]
    assert float(table[0]["change"]) == pytest.approx(result.extended.change.difference.value)
    assert float(table[0]["winner, 40 epochs"]) == pytest.approx(last)


def test_without_extended_training_the_report_says_why(small_sweep: MakeSweep) -> None:
    _, written, page = reported(fixed(small_sweep, 0.02, 8, extended_training=None))
    assert "Extended training is disabled" in page
    assert not (written.page.parent / "tables" / "extended.csv").exists()


def test_extended_training_that_failed_or_is_missing_is_reported(small_sweep: MakeSweep) -> None:
    spec = fixed(small_sweep, 0.02, 8)
    reported(spec)
    place = Path(spec.storage) / spec.name
    one = read_sweep(place).extended
    assert one is not None
    cut(place, len(pack_lines(place)) - 1)
    page = read(write([place], None))
    assert "At the end of the sweep, the winner is trained 3x as long" in page
    assert read_sweep(place).extended is None, "the winner is not known yet"
    with contextlib.closing(Ledger(place)) as ledger:
        ledger.finish({}, [])
        page = read(write([place], None))
        assert "It was not trained 3x as long yet; run `lt-sweep resume small`" in page
        keys, nothing = [record.key for record in one.records], np.full((24, 4), np.nan, dtype=np.float32)
        failed = RunResult(None, nothing, nothing[:, 0], None, "diverged: in a test")
        ledger.propose([(one.trial, keys)])
        pack = Pack("extended-0", tuple(one.trial.runs()), spec.selection.epoch_rule())
        ledger.append(pack, [one.trial] * 3, keys, [failed] * 3, 1.0)
        ledger.finish({}, [])
    page = read(write([place], None))
    assert "The run trained 3x as long failed; see Failures." in page
    assert "los, trial 0, extended training 3 of 3" in page
    assert "failed and cannot win" not in page


def test_a_method_that_trains_nothing_has_no_extended_training(small_sweep: MakeSweep) -> None:
    spec = small_sweep(
        method=None, methods=["vanilla"], search={"trials": 1, "space": {}}, selection={"extended_training": 3}
    )
    _, _, page = reported(spec)
    assert "The method trains nothing: there is one run, and no extended training." in page


def test_runs_and_costs_include_extended_training(small_sweep: MakeSweep) -> None:
    _, written, _ = reported(fixed(small_sweep, 0.02, 2))
    by_phase = {row["phase"]: row for row in rows(written.page.parent / "tables" / "runs_by_phase.csv")}
    assert (by_phase["extended training"]["runs trained"], by_phase["extended training"]["epochs"]) == ("3", "18")
    every = rows(written.page.parent / "data" / "runs.csv")
    assert [row["seed"] for row in every if row["phase"] == "extended"] == ["0", "1", "2"]
