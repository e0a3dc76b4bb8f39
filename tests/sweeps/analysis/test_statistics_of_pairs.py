"""Differences between settings and how curves end: ties, seeds that are not shared, transients."""

from __future__ import annotations

import numpy as np
import pytest

from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.methods.los import LabelOverSmooth
from lt_train.methods.vanilla import Vanilla
from sweeps.analysis.load import TrialRuns
from sweeps.analysis.statistics import difference, ending
from sweeps.config.trials import Trial
from sweeps.store.ledger import Record


def record(seed: int, accuracy: float) -> Record:
    row = [accuracy, accuracy, accuracy, None]
    nothing = {"val": None, "loss": [], "class_accuracy": [], "loma": [], "regularised_std": []}
    return Record(str(seed), seed, None, 0, test=[row], loma_mean=None, loma_cv=None, **nothing)


def setting(accuracies: dict[int, float], method: MethodSpec | None = None) -> TrialRuns:
    trial = Trial("t", "search", 0, {}, method or LabelOverSmooth(), TrainingSpec(), tuple(accuracies))
    return TrialRuns(trial, tuple(record(*one) for one in accuracies.items()), None, None)


def test_seeds_that_rise_and_fall_together_are_paired() -> None:
    ours, theirs = {0: 0.51, 1: 0.61, 2: 0.712}, {2: 0.70, 0: 0.50, 1: 0.60}
    found = difference(setting(ours), setting(theirs), 0)
    assert (found.verdict, found.seeds) == ("better", 3)
    assert found.by_split[0] is not None
    assert found.by_split[0].mean == pytest.approx(0.032 / 3)
    assert found.by_split[3] is None  # an empty split is no difference of 0
    assert difference(setting(theirs), setting(ours), 0).verdict == "worse"


def test_a_difference_whose_interval_holds_zero_is_a_tie() -> None:
    found = difference(setting({0: 0.50, 1: 0.53, 2: 0.52}), setting({0: 0.51, 1: 0.51, 2: 0.51}), 0)
    assert found.verdict == "tied"
    assert found.by_split[0] is not None
    assert found.by_split[0].mean > 0.006
    assert found.p_value is not None
    assert found.p_value > 0.05


def test_equal_runs_are_tied_also_with_one_seed() -> None:
    assert difference(setting({0: 0.5}), setting({0: 0.5}), 0).verdict == "tied"
    assert difference(setting({0: 0.5, 1: 0.6}), setting({0: 0.5, 1: 0.6}), 0).verdict == "tied"
    assert difference(setting({0: 0.1 + 0.2}), setting({0: 0.3}), 0).verdict == "tied", "but for rounding"


def test_one_seed_says_of_a_difference_only_that_it_is_there() -> None:
    found = difference(setting({0: 0.6}), setting({0: 0.5}), 0)
    assert (found.verdict, found.p_value) == ("one run", None)


def test_what_trains_nothing_stands_for_every_seed() -> None:
    found = difference(setting({5: 0.6, 6: 0.61}), setting({5: 0.5}, Vanilla()), 0)
    assert (found.seeds, found.verdict) == (2, "better")
    assert difference(setting({5: 0.5}, Vanilla()), setting({0: 0.6, 1: 0.61}), 0).verdict == "worse"


def test_seeds_that_differ_by_the_same_images_have_no_spread_to_test_with() -> None:
    ours, theirs = setting({0: 0.606, 1: 0.706}), setting({0: 0.6, 1: 0.7})
    found = difference(ours, theirs, 0)
    assert (found.verdict, found.test, found.p_value) == ("no spread", "paired", None)
    assert found.by_split[0] is not None
    assert found.by_split[0].mean == pytest.approx(0.006)
    assert not found.behind(0)
    assert difference(theirs, ours, 0).behind(0)


def test_what_trains_nothing_is_not_called_paired_where_nothing_may_be() -> None:
    ours, theirs = setting({5: 0.6, 6: 0.61}), setting({5: 0.5}, Vanilla())
    welch, paired = (difference(ours, theirs, 0, pair=pair) for pair in (False, True))
    assert (welch.test, welch.seeds, welch.verdict) == ("welch", 0, "better")
    assert welch.p_value == pytest.approx(paired.p_value), "one fixed value has no spread of its own"
    assert difference(theirs, ours, 0, pair=False).test == "welch"


def test_other_seeds_are_not_paired_by_their_place() -> None:
    ours, theirs = setting({0: 0.6, 1: 0.7}), setting({5: 0.5, 6: 0.6})
    found = difference(ours, theirs, 0)
    assert (found.verdict, found.test, found.seeds) == ("tied", "welch", 0)
    assert found.told == "tied (Welch)"
    assert found.p_value == pytest.approx(0.2929, abs=1e-4)  # t = sqrt(2) with 2 degrees of freedom
    assert found.by_split[0] is not None
    assert found.by_split[0].low is not None
    assert found.by_split[0].low < 0 < found.by_split[0].mean
    assert difference(setting({0: 0.60, 1: 0.61}), setting({5: 0.50, 6: 0.51}), 0).verdict == "better"
    assert difference(setting({0: 0.60, 1: 0.61}), setting({0: 0.50, 1: 0.51}), 0, pair=False).test == "welch"


def test_one_run_with_another_seed_is_no_test() -> None:
    found = difference(setting({0: 0.6}), setting({5: 0.5, 6: 0.6}), 0)
    assert (found.verdict, found.test, found.p_value) == ("one run", "none", None)
    assert found.by_split[0] is not None
    assert found.by_split[0].mean == pytest.approx(0.05)


def test_of_seeds_that_are_shared_in_part_those_are_paired_and_of_one_alone_none_is() -> None:
    found = difference(setting({0: 0.6, 1: 0.7, 2: 0.1}), setting({0: 0.5, 1: 0.6, 7: 0.9}), 0)
    assert (found.test, found.seeds) == ("paired", 2)
    assert difference(setting({0: 0.6, 1: 0.7}), setting({1: 0.5, 2: 0.6}), 0).test == "welch"


def test_two_that_train_nothing_have_one_run_each_whatever_their_seeds_are_called() -> None:
    for seed in (0, 5):
        found = difference(setting({5: 0.5}, Vanilla()), setting({seed: 0.6}, Vanilla()), 0)
        assert (found.verdict, found.p_value) == ("one run", None)


def test_without_a_test_the_lower_mean_is_behind_and_a_tie_is_not() -> None:
    ours = setting({0: 0.5, 1: 0.53})
    assert difference(setting({0: 0.5}), setting({5: 0.6}), 0).behind(0)
    assert not difference(setting({0: 0.5}), setting({5: 0.4}), 0).behind(0)
    assert not difference(ours, setting({5: 0.6, 6: 0.6}), 0).behind(0)  # Welch's: a tie
    assert not difference(ours, setting({0: 0.53, 1: 0.52}), 0).behind(0)
    assert difference(ours, setting({0: 0.6, 1: 0.63}), 0).behind(0)
    assert not difference(setting({0: 0.6, 1: 0.63}), ours, 0).behind(0)


def curves(shape: list[float], noise: float = 0.0005) -> np.ndarray:
    return np.array(shape) + noise * np.random.default_rng(0).standard_normal((5, 1))


def test_a_curve_that_has_passed_its_peak_is_falling() -> None:
    found = ending(curves([0.5, 0.6, 0.7, 0.75, 0.74, 0.72, 0.70, 0.69, 0.68, 0.68]))
    assert found is not None
    assert (found.shape, found.peak, found.epochs) == ("falling", 4, 10)
    assert found.peak_value - found.last_value == pytest.approx(0.07)


def test_a_curve_that_still_climbs_is_rising() -> None:
    found = ending(curves(np.linspace(0.5, 0.7, 20).tolist()))
    assert found is not None
    assert (found.shape, found.peak) == ("rising", 20)


def test_a_curve_that_has_settled_is_level_and_of_equal_peaks_the_later_counts() -> None:
    found = ending(curves([0.5, 0.6, 0.65, 0.66, *[0.66] * 16]))
    assert found is not None
    assert (found.shape, found.peak) == ("level", 20)


def test_a_dip_that_is_noise_is_no_fall() -> None:
    settled = np.array([0.5, 0.6, 0.65, *[0.66] * 9]) + np.zeros((5, 1))
    settled[:, 6] += [0.03, -0.02, 0.025, -0.02, 0.01]  # half a point above the end, but not in every seed
    found = ending(settled)
    assert found is not None
    assert (found.shape, found.peak) == ("level", 7)
    single = ending(np.array([[0.5, 0.6, 0.660, 0.661, 0.662, 0.660, 0.661, 0.661]]))
    assert single is not None
    assert single.shape == "level"  # less than half a point, with one seed


def test_few_epochs_are_not_judged_and_an_empty_split_has_no_end() -> None:
    short = ending(curves([0.5, 0.6, 0.7]))
    assert short is not None
    assert short.shape == "short"
    assert ending(np.full((2, 8), np.nan)) is None
    assert ending(np.zeros((0, 0))) is None
