"""Selection by hand-made records: objectives, best seeds, rankings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from lt_train.methods import LOS
from lt_train.methods.base import TrainingSpec
from sweeps.analysis import selection
from sweeps.analysis.labels import objective_text, protocol
from sweeps.analysis.selection import TrialRuns
from sweeps.config.sections import SelectionSpec
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Trial
from sweeps.store.ledger import LedgerReader
from sweeps.store.records import Record, Scores


def record(
    seed: int, test: float | None, *, val: float | None = None, failure: str | None = None, stopped: int | None = None
) -> Record:
    accuracies: Scores | None = None if test is None else (test, None, test / 2, test / 4)
    status: Literal["failed", "stopped", "finished"] = "failed" if failure else "stopped" if stopped else "finished"
    return Record(
        key=f"k{seed}",
        seed=seed,
        status=status,
        failure=failure,
        epochs=stopped or 10,
        epoch=-1 if failure else 9,
        val=None if val is None else (val, None, val, val),
        test=accuracies,
        loma_mean=None,
        loma_cv=None,
        pack="p",
        at_ms=0,
    )


def trial(
    records: list[Record],
    *,
    metric: Literal["acc_all", "acc_many", "acc_few"] = "acc_all",
    on: Literal["val", "test"] = "test",
    how: Literal["mean", "best"] = "mean",
    number: int = 0,
) -> TrialRuns:
    one = Trial(f"search-{number:04d}", "search", number, {}, LOS(), TrainingSpec(), tuple(r.seed for r in records))
    chosen = SelectionSpec(metric=metric, on=on, objective=how)
    return selection.trial_runs(one, records, chosen, LedgerReader(Path("none")))


def test_an_empty_split_is_nan():
    values = trial([record(0, 0.9), record(1, 0.2)]).values
    assert values[:, 0].tolist() == [0.9, 0.2]
    assert np.isnan(values[:, 1]).all()
    assert values[:, 3].tolist() == [0.225, 0.05]


def test_objective_is_mean_or_best_in_the_selection_metric():
    records = [record(0, 0.8, val=0.5), record(1, 0.6, val=0.9)]
    assert trial(records).objective == pytest.approx(0.7)
    assert trial(records, how="best").objective == 0.8
    assert trial(records, on="val").objective == pytest.approx(0.7)
    assert trial(records, metric="acc_few", on="val", how="best").objective == 0.9


def test_one_failed_seed_fails_the_trial():
    records = [record(0, 0.8), record(1, None, failure="diverged")]
    assert trial(records).failed
    assert trial(records).objective is None
    assert trial(records, how="best").objective is None


def test_a_trial_is_stopped_when_its_seeds_are():
    assert trial([record(0, 0.8), record(1, 0.8)]).stopped is None
    assert trial([record(0, 0.8, stopped=5), record(1, 0.8, stopped=5)]).stopped == 5
    broken = trial([record(0, None, failure="diverged"), record(1, 0.8, stopped=5)])
    assert (broken.stopped, broken.objective) == (5, None)


def test_a_split_without_images_gives_no_objective():
    assert trial([record(0, 0.8)], metric="acc_many").objective is None


def test_best_seed_is_chosen_on_val_and_the_first_of_equal_ones():
    records = [record(0, 0.9, val=0.5), record(1, 0.1, val=0.7), record(2, 0.2, val=0.7)]
    assert selection.best_seed(records, column=0, on="val") == 1
    assert selection.best_seed(records, column=0, on="test") == 0


def test_failed_and_stopped_trials_are_not_ranked_and_ties_go_by_number(small_sweep: Callable[..., SweepSpec]):
    every = [
        trial([record(0, 0.5)], number=3),
        trial([record(0, 0.5)], number=1),
        trial([record(0, None, failure="diverged")], number=0),
        trial([record(0, 0.9, stopped=5)], number=2),
        trial([record(0, 0.7)], number=4),
    ]
    ranked = selection.ranking(every, small_sweep(), "search")
    assert [one.trial.number for one in ranked] == [4, 1, 3]
    assert selection.ranking(every, small_sweep(), "finalist") == []


@pytest.mark.parametrize(("seeds", "text"), [(1, "one seed"), (2, "best of 2 seeds")])
def test_the_protocol_of_one_seed_has_no_mean_or_best(seeds: int, text: str, small_sweep: Callable[..., SweepSpec]):
    spec = small_sweep(selection={"seeds": seeds, "objective": "best"})
    assert objective_text("best", seeds) == text
    assert protocol(spec) == f"acc_all on val, last epoch, {text}"
