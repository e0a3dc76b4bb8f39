from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sweeps.analysis import selection
from sweeps.analysis.labels import objective_text, protocol
from sweeps.config.spec import SweepSpec
from sweeps.store.ledger import Record


def record(
    seed: int,
    test: list[float],
    *,
    val: list[float] | None = None,
    epoch: int = 0,
    failure: str | None = None,
    stopped: int | None = None,
):
    rows = [[value, None, value / 2, value / 4] for value in test]
    vals = None if val is None else [[value, None, value, value] for value in val]
    return Record(
        key=f"k{seed}", seed=seed, failure=failure, epoch=-1 if failure else epoch, val=vals, test=rows, loss=[],
        class_accuracy=[], loma=[], regularised_std=[], loma_mean=None, loma_cv=None,
        stopped=stopped,
    )  # fmt: skip


def test_reported_takes_the_selected_epoch_and_an_empty_split_is_nan():
    values = selection.reported([record(0, [0.1, 0.9, 0.3], epoch=1), record(1, [0.2, 0.4], epoch=0)])
    assert values[:, 0].tolist() == [0.9, 0.2]
    assert np.isnan(values[:, 1]).all()
    assert values[:, 3].tolist() == [0.225, 0.05]


def test_objective_is_mean_or_best_in_the_selection_metric():
    records = [record(0, [0.8], val=[0.5]), record(1, [0.6], val=[0.9])]
    assert selection.objective(records, metric="acc_all", on="test", how="mean") == pytest.approx(0.7)
    assert selection.objective(records, metric="acc_all", on="test", how="best") == 0.8
    assert selection.objective(records, metric="acc_all", on="val", how="mean") == pytest.approx(0.7)
    assert selection.objective(records, metric="acc_few", on="val", how="best") == 0.9


def test_one_failed_seed_fails_the_trial():
    records = [record(0, [0.8]), record(1, [], failure="diverged")]
    assert selection.objective(records, metric="acc_all", on="test", how="mean") is None
    assert selection.objective(records, metric="acc_all", on="test", how="best") is None


def test_a_trial_is_stopped_when_its_seeds_are():
    assert selection.stopped([record(0, [0.8]), record(1, [0.8])]) is None
    assert selection.stopped([record(0, [0.8], stopped=5), record(1, [0.8], stopped=5)]) == 5
    broken = [record(0, [], failure="diverged"), record(1, [0.8], stopped=5)]
    assert selection.stopped(broken) == 5
    assert selection.objective(broken, metric="acc_all", on="test", how="mean") is None


def test_a_split_without_images_gives_no_objective():
    assert selection.objective([record(0, [0.8])], metric="acc_many", on="test", how="mean") is None


def test_best_seed_is_chosen_on_val_and_the_first_of_equal_ones():
    records = [record(0, [0.9], val=[0.5]), record(1, [0.1], val=[0.7]), record(2, [0.2], val=[0.7])]
    assert selection.best_seed(records, metric="acc_all", on="val") == 1
    assert selection.best_seed(records, metric="acc_all", on="test") == 0


@pytest.mark.parametrize(("seeds", "text"), [(1, "one seed"), (2, "best of 2 seeds")])
def test_the_protocol_of_one_seed_has_no_mean_or_best(seeds: int, text: str, small_sweep: Callable[..., SweepSpec]):
    spec = small_sweep(selection={"seeds": seeds, "objective": "best"})
    assert objective_text("best", seeds) == text
    assert protocol(spec) == f"acc_all on val, last epoch, {text}"
