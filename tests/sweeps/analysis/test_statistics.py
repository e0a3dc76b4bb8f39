"""Estimates, comparisons of trials, trends of curves and changes by class, by hand-made values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lt_train.methods import LOS, Vanilla
from lt_train.methods.base import MethodSpec, TrainingSpec
from sweeps.analysis.labels import verdict_text
from sweeps.analysis.load import TrialRuns
from sweeps.analysis.statistics import (
    Comparison,
    class_gains,
    compare_trials,
    curve_trend,
    estimate,
    paired,
    significant,
    welch,
)
from sweeps.config.trials import Trial
from sweeps.store.ledger import LedgerReader
from sweeps.store.records import Record


def record(seed: int, accuracy: float) -> Record:
    row = (accuracy, accuracy, accuracy, None)
    return Record(str(seed), seed, "finished", None, 1, 0, None, row, loma_mean=None, loma_cv=None, pack="p", at_ms=0)


def trial(accuracies: dict[int, float], method: MethodSpec | None = None) -> TrialRuns:
    one = Trial("t", "search", 0, {}, method or LOS(), TrainingSpec(), tuple(accuracies))
    return TrialRuns(one, tuple(record(*one) for one in accuracies.items()), None, LedgerReader(Path("none")))


def compared(ours: TrialRuns, theirs: TrialRuns, *, pair: bool = True) -> Comparison:
    found = compare_trials(ours, theirs, pair=pair)["acc_all"]
    assert found is not None
    return found


def test_an_estimate_is_a_mean_with_students_interval() -> None:
    values = np.array([0.80, 0.82, 0.79, 0.85, 0.81])
    found = estimate(values)
    assert found is not None
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 4, values.mean(), stats.sem(values)))
    single = estimate(np.array([0.5]))
    assert single is not None
    assert (single.value, single.low, single.high) == (0.5, None, None)
    assert estimate(np.array([0.5, np.nan])) is None


def test_paired_is_the_paired_t_test() -> None:
    a, b = np.array([0.81, 0.84, 0.80, 0.86]), np.array([0.80, 0.82, 0.81, 0.83])
    found, expected = paired(a, b), stats.ttest_rel(a, b)
    assert found is not None
    assert (found.p_value, found.test, found.pairs) == (pytest.approx(expected.pvalue), "paired", 4)
    ends = (found.difference.low, found.difference.high)
    assert ends == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_equal_differences_have_an_interval_without_width_and_no_p_value() -> None:
    same = np.array([0.5, 0.5, 0.5])
    assert paired(same, same).p_value == 1.0
    ahead = paired(same + 0.25, same)
    assert (ahead.difference.value, ahead.difference.low, ahead.p_value) == (0.25, 0.25, None)
    assert welch(same + 0.25, same).p_value is None
    assert paired(same[:1] + 0.25, same[:1]).p_value is None


def test_welch_is_welchs_test_and_one_run_is_not_tested() -> None:
    a, b = np.array([0.6, 0.7, 0.65]), np.array([0.5, 0.4])
    found, expected = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found is not None
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.difference.value == pytest.approx(0.2)
    assert welch(a[:1], b).difference.low is None
    level = welch(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert (level.p_value, level.difference.value) == (1.0, 0.0)


def test_seeds_that_rise_and_fall_together_are_paired() -> None:
    ours, theirs = {0: 0.51, 1: 0.61, 2: 0.712}, {2: 0.70, 0: 0.50, 1: 0.60}
    found = compared(trial(ours), trial(theirs))
    assert (found.verdict, found.pairs) == ("better", 3)
    assert found.difference.value == pytest.approx(0.032 / 3)
    assert compare_trials(trial(ours), trial(theirs))["acc_few"] is None, "an empty split"
    assert compared(trial(theirs), trial(ours)).verdict == "worse"


def test_a_difference_whose_interval_holds_zero_is_a_tie() -> None:
    found = compared(trial({0: 0.50, 1: 0.53, 2: 0.52}), trial({0: 0.51, 1: 0.51, 2: 0.51}))
    assert found.verdict == "tied"
    assert found.difference.value > 0.006
    assert found.p_value is not None
    assert found.p_value > 0.05


def test_equal_runs_are_tied_also_with_one_seed() -> None:
    assert compared(trial({0: 0.5}), trial({0: 0.5})).verdict == "tied"
    assert compared(trial({0: 0.5, 1: 0.6}), trial({0: 0.5, 1: 0.6})).verdict == "tied"
    assert compared(trial({0: 0.1 + 0.2}), trial({0: 0.3})).verdict == "tied", "but for rounding"


def test_one_seed_says_of_a_difference_only_that_it_is_there() -> None:
    found = compared(trial({0: 0.6}), trial({0: 0.5}))
    assert (found.verdict, found.p_value) == ("undecided", None)


def test_an_untrained_method_stands_for_every_seed() -> None:
    found = compared(trial({5: 0.6, 6: 0.61}), trial({5: 0.5}, Vanilla()))
    assert (found.pairs, found.verdict) == (2, "better")
    assert compared(trial({5: 0.5}, Vanilla()), trial({0: 0.6, 1: 0.61})).verdict == "worse"


def test_seeds_that_differ_by_the_same_images_have_no_spread_to_test_with() -> None:
    ours, theirs = trial({0: 0.606, 1: 0.706}), trial({0: 0.6, 1: 0.7})
    found = compared(ours, theirs)
    assert (found.verdict, found.test, found.p_value) == ("undecided", "paired", None)
    assert found.difference.value == pytest.approx(0.006)
    assert not found.behind
    assert compared(theirs, ours).behind


def test_an_untrained_method_is_not_paired_without_permission() -> None:
    ours, theirs = trial({5: 0.6, 6: 0.61}), trial({5: 0.5}, Vanilla())
    welch, paired = (compared(ours, theirs, pair=pair) for pair in (False, True))
    assert (welch.test, welch.pairs, welch.verdict) == ("welch", 0, "better")
    assert welch.p_value == pytest.approx(paired.p_value), "one fixed value has no spread of its own"
    assert compared(theirs, ours, pair=False).test == "welch"


def test_other_seeds_are_not_paired_by_their_place() -> None:
    ours, theirs = trial({0: 0.6, 1: 0.7}), trial({5: 0.5, 6: 0.6})
    found = compared(ours, theirs)
    assert (found.verdict, found.test, found.pairs) == ("tied", "welch", 0)
    assert verdict_text(found) == "tied (Welch)"
    assert found.p_value == pytest.approx(0.2929, abs=1e-4)  # t = sqrt(2) with 2 degrees of freedom
    assert found.difference.low < 0 < found.difference.value
    assert compared(trial({0: 0.60, 1: 0.61}), trial({5: 0.50, 6: 0.51})).verdict == "better"
    assert compared(trial({0: 0.60, 1: 0.61}), trial({0: 0.50, 1: 0.51}), pair=False).test == "welch"


def test_one_run_with_another_seed_is_no_test() -> None:
    found = compared(trial({0: 0.6}), trial({5: 0.5, 6: 0.6}))
    assert (found.verdict, found.test, found.p_value) == ("undecided", "none", None)
    assert found.difference.value == pytest.approx(0.05)


def test_shared_seeds_are_paired_unless_there_is_only_one() -> None:
    found = compared(trial({0: 0.6, 1: 0.7, 2: 0.1}), trial({0: 0.5, 1: 0.6, 7: 0.9}))
    assert (found.test, found.pairs) == ("paired", 2)
    assert compared(trial({0: 0.6, 1: 0.7}), trial({1: 0.5, 2: 0.6})).test == "welch"


def test_two_that_train_nothing_have_one_run_each_whatever_their_seeds_are_called() -> None:
    for seed in (0, 5):
        found = compared(trial({5: 0.5}, Vanilla()), trial({seed: 0.6}, Vanilla()))
        assert (found.verdict, found.p_value) == ("undecided", None)


def test_without_a_test_the_lower_mean_is_behind_and_a_tie_is_not() -> None:
    ours = trial({0: 0.5, 1: 0.53})
    assert compared(trial({0: 0.5}), trial({5: 0.6})).behind
    assert not compared(trial({0: 0.5}), trial({5: 0.4})).behind
    assert not compared(ours, trial({5: 0.6, 6: 0.6})).behind  # Welch's: a tie
    assert not compared(ours, trial({0: 0.53, 1: 0.52})).behind
    assert compared(ours, trial({0: 0.6, 1: 0.63})).behind
    assert not compared(trial({0: 0.6, 1: 0.63}), ours).behind


def curves(shape: list[float], noise: float = 0.0005) -> np.ndarray:
    return np.array(shape) + noise * np.random.default_rng(0).standard_normal((5, 1))


def test_a_curve_that_has_passed_its_peak_is_falling() -> None:
    found = curve_trend(curves([0.5, 0.6, 0.7, 0.75, 0.74, 0.72, 0.70, 0.69, 0.68, 0.68]))
    assert found is not None
    assert (found.trend, found.peak, found.epochs) == ("declining", 4, 10)
    assert found.peak_value - found.last_value == pytest.approx(0.07)


def test_a_curve_that_still_climbs_is_rising() -> None:
    found = curve_trend(curves(np.linspace(0.5, 0.7, 20).tolist()))
    assert found is not None
    assert (found.trend, found.peak) == ("improving", 20)


def test_a_curve_that_has_settled_is_level_and_of_equal_peaks_the_later_counts() -> None:
    found = curve_trend(curves([0.5, 0.6, 0.65, 0.66, *[0.66] * 16]))
    assert found is not None
    assert (found.trend, found.peak) == ("stable", 20)


def test_a_dip_that_is_noise_is_no_fall() -> None:
    settled = np.array([0.5, 0.6, 0.65, *[0.66] * 9]) + np.zeros((5, 1))
    settled[:, 6] += [0.03, -0.02, 0.025, -0.02, 0.01]  # half a point above the end, but not in every seed
    found = curve_trend(settled)
    assert found is not None
    assert (found.trend, found.peak) == ("stable", 7)
    single = curve_trend(np.array([[0.5, 0.6, 0.660, 0.661, 0.662, 0.660, 0.661, 0.661]]))
    assert single is not None
    assert single.trend == "stable"  # less than half a point, with one seed


def test_few_epochs_are_not_judged_and_an_empty_split_has_no_end() -> None:
    short = curve_trend(curves([0.5, 0.6, 0.7]))
    assert short is not None
    assert short.trend == "inconclusive"
    assert curve_trend(np.full((2, 8), np.nan)) is None
    assert curve_trend(np.zeros((0, 0))) is None


IMAGES = np.array([10.0, 10.0, 10.0])


def test_an_equal_gain_in_every_seed_is_as_significant_as_the_rounding_to_images_allows() -> None:
    theirs = np.tile([0.5, 0.5, 0.5], (5, 1))
    found = class_gains(theirs + np.array([0.1, 0.4, 0.0]), theirs, IMAGES, paired=True)
    assert found.gain == pytest.approx([0.1, 0.4, 0.0])
    assert found.p_value is not None
    # One image of ten over five seeds: t = 1 / sqrt(1 / 6 / 5) with 4 degrees of freedom.
    assert found.p_value == pytest.approx([0.00542, 0.0000257, 1.0], rel=0.01)
    assert found.significant.tolist() == [True, True, False]


def test_one_image_in_two_seeds_is_not_significant() -> None:
    theirs = np.tile([0.5, 0.5, 0.5], (2, 1))
    found = class_gains(theirs + np.array([0.1, 0.0, 0.0]), theirs, IMAGES, paired=True)
    assert not found.significant.any()


def test_unpaired_rows_may_differ_in_number_and_order() -> None:
    random = np.random.default_rng(0)
    ours, theirs = 0.6 + 0.05 * random.standard_normal((5, 3)), 0.5 + 0.05 * random.standard_normal((4, 3))
    found = class_gains(ours, theirs, IMAGES, paired=False)
    again = class_gains(ours[::-1], theirs, IMAGES, paired=False)
    assert found.p_value == pytest.approx(again.p_value)
    assert found.p_value is not None
    assert (found.p_value < 0.2).all()


def test_one_run_is_not_tested_and_a_class_without_images_is_never_significant() -> None:
    alone = class_gains(np.array([[0.6, 0.5]]), np.array([[0.5, 0.5]]), IMAGES[:2], paired=True)
    assert alone.p_value is None
    assert not alone.significant.any()
    empty = np.full((3, 2), [0.5, np.nan])
    found = class_gains(empty + 0.4, empty, np.array([10.0, 0.0]), paired=True)
    assert found.significant.tolist() == [True, False]


def test_the_procedure_agrees_with_the_paper_of_benjamini_and_hochberg() -> None:
    """Benjamini and Hochberg 1995, section 3.2: of fifteen four are rejected at 0.05, by Bonferroni three."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    shuffled = np.random.default_rng(0).permutation(15)
    assert significant(np.array(p)[shuffled])[np.argsort(shuffled)].tolist() == [True] * 4 + [False] * 11


def test_a_significant_p_value_makes_all_smaller_ones_significant() -> None:
    assert significant(np.array([0.04, 0.045, 0.049])).all()  # only the third is below its threshold
    assert not significant(np.array([0.04, 0.06, 0.07])).any()
    assert significant(np.array([np.nan, 0.01])).tolist() == [False, True]
    assert significant(np.array([])).size == 0
