from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from sweeps.analysis import selection
from sweeps.analysis.labels import protocol
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


def test_reported_takes_the_epoch_that_counts_and_an_empty_split_is_nan():
    values = selection.reported([record(0, [0.1, 0.9, 0.3], epoch=1), record(1, [0.2, 0.4], epoch=0)])
    assert values[:, 0].tolist() == [0.9, 0.2]
    assert np.isnan(values[:, 1]).all()
    assert values[:, 3].tolist() == [0.225, 0.05]


def test_objective_is_mean_or_best_on_what_the_protocol_says():
    records = [record(0, [0.8], val=[0.5]), record(1, [0.6], val=[0.9])]
    assert selection.objective(records, metric="acc_all", on="test", how="mean") == pytest.approx(0.7)
    assert selection.objective(records, metric="acc_all", on="test", how="best") == 0.8
    assert selection.objective(records, metric="acc_all", on="val", how="mean") == pytest.approx(0.7)
    assert selection.objective(records, metric="acc_few", on="val", how="best") == 0.9


def test_one_failed_seed_fails_the_trial():
    records = [record(0, [0.8]), record(1, [], failure="diverged")]
    assert selection.objective(records, metric="acc_all", on="test", how="mean") is None
    assert selection.objective(records, metric="acc_all", on="test", how="best") is None


def test_a_trial_is_stopped_when_its_sound_seeds_are():
    assert selection.stopped([record(0, [0.8]), record(1, [0.8])]) is None
    assert selection.stopped([record(0, [0.8], stopped=5), record(1, [0.8], stopped=5)]) == 5
    broken = [record(0, [], failure="diverged"), record(1, [0.8], stopped=5)]
    assert selection.stopped(broken) == 5
    assert selection.objective(broken, metric="acc_all", on="test", how="mean") is None


def test_a_split_without_images_gives_no_objective():
    assert selection.objective([record(0, [0.8])], metric="acc_many", on="test", how="mean") is None


def test_best_seed_is_chosen_on_val_and_the_first_of_equals():
    records = [record(0, [0.9], val=[0.5]), record(1, [0.1], val=[0.7]), record(2, [0.2], val=[0.7])]
    assert selection.best_seed(records, metric="acc_all", on="val") == 1
    assert selection.best_seed(records, metric="acc_all", on="test") == 0


def test_interval_is_students():
    values = np.array([0.80, 0.82, 0.79, 0.85, 0.81])
    low, high = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    found = selection.interval(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high))


def test_interval_covers_the_mean_at_the_stated_rate():
    rng = np.random.default_rng(0)
    top1_correct = 0
    for _ in range(2000):
        found = selection.interval(rng.normal(0.8, 0.01, size=5))
        assert found is not None
        top1_correct += found.low <= 0.8 <= found.high
    # Binomial(2000, .95) stays within four standard deviations of 1900.
    assert abs(top1_correct - 1900) < 4 * math.sqrt(2000 * 0.95 * 0.05)


def test_one_seed_has_no_interval():
    assert selection.interval(np.array([0.5])) is None
    assert selection.interval(np.array([0.5, np.nan])) is None


def test_paired_is_the_paired_t_test():
    a, b = np.array([0.81, 0.84, 0.80, 0.86]), np.array([0.80, 0.82, 0.81, 0.83])
    found = selection.paired(a, b)
    assert found.mean == pytest.approx(float((a - b).mean()))
    assert found.p_value == pytest.approx(float(stats.ttest_rel(a, b).pvalue))


def test_paired_says_what_it_can_where_t_is_not_finite():
    same = np.array([0.5, 0.5, 0.5])
    assert selection.paired(same, same).p_value == 1.0
    ahead = selection.paired(same + 0.25, same)
    assert (ahead.mean, ahead.p_value) == (0.25, None), "seeds that agree to the image test nothing"
    assert ahead.ci95 is not None
    assert selection.welch(same + 0.25, same).p_value is None
    assert selection.paired(same[:1] + 0.25, same[:1]).p_value is None


@pytest.mark.parametrize(("seeds", "told"), [(1, "one seed"), (2, "best of 2 seeds")])
def test_one_seed_is_called_one_wherever_a_protocol_is_told(
    seeds: int, told: str, small_sweep: Callable[..., SweepSpec]
):
    spec = small_sweep(selection={"seeds": seeds, "objective": "best"})
    assert selection.chosen_over("best", seeds) == told
    assert protocol(spec) == f"acc_all on val, last epoch, {told}"
