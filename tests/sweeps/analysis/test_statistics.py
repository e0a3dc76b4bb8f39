"""The statistics that a report states, against a thousand simulated sweeps of normal seeds; nothing is trained."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from sweeps.analysis import selection
from sweeps.analysis.class_gains import class_gains
from sweeps.analysis.statistics import ending

REPETITIONS = 1000
TRUE = 0.60
SPREAD = 0.01


def draws(seeds: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """`[REPETITIONS, seeds]` accuracies around the true mean."""
    return TRUE + shift + SPREAD * np.random.default_rng(seed).standard_normal((REPETITIONS, seeds))


def near_95(share: float) -> bool:
    """Within four standard errors of a share of .95 in a thousand: 0.0069 each."""
    return abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / REPETITIONS)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_the_true_mean_at_the_stated_rate(seeds: int) -> None:
    found = [selection.interval(one) for one in draws(seeds)]
    assert near_95(np.mean([one is not None and one.low <= TRUE <= one.high for one in found]))


def holds(gap: selection.MeanDifference, true: float) -> bool:
    return gap.ci95 is not None and gap.ci95.low <= true <= gap.ci95.high


def one_in_twenty_is_told_apart(equal: list[selection.MeanDifference]) -> None:
    """And the interval says what the p value does."""
    apart = [one.ci95 is not None and not holds(one, 0) for one in equal]
    assert near_95(1 - np.mean(apart))
    assert [one.p_value is not None and one.p_value < 0.05 for one in equal] == apart


@pytest.mark.parametrize("seeds", [2, 5])
def test_paired_intervals_cover_the_true_gap_although_seeds_share_their_luck(seeds: int) -> None:
    luck, gap = 5 * (draws(seeds, 1) - TRUE), 0.004
    pairs = [
        selection.paired(ours + shared + gap, theirs + shared)
        for ours, theirs, shared in zip(draws(seeds, 2), draws(seeds, 3), luck, strict=True)
    ]
    assert near_95(np.mean([holds(pair, gap) for pair in pairs]))


def test_of_equal_settings_one_in_twenty_is_told_apart_and_the_interval_says_what_the_p_value_does() -> None:
    pairs = [selection.paired(ours, theirs) for ours, theirs in zip(draws(5, 4), draws(5, 5), strict=True)]
    one_in_twenty_is_told_apart(pairs)


@pytest.mark.parametrize(("seeds", "others", "spread"), [(3, 3, 1), (5, 5, 1), (5, 5, 3), (5, 10, 3), (10, 5, 3)])
def test_welchs_intervals_cover_the_true_gap_whatever_the_spreads(seeds: int, others: int, spread: float) -> None:
    gap = 0.004
    ours, theirs = draws(seeds, 7, gap), TRUE + spread * (draws(others, 8) - TRUE)
    found = [selection.welch(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert near_95(np.mean([holds(one, gap) for one in found]))


def test_of_equal_settings_on_other_seeds_welch_tells_one_in_twenty_apart_as_its_interval_does() -> None:
    found = [selection.welch(ours, theirs) for ours, theirs in zip(draws(5, 9), draws(5, 10), strict=True)]
    one_in_twenty_is_told_apart(found)


def test_welch_is_the_known_one_and_says_nothing_of_one_run() -> None:
    found = selection.welch(np.array([0.6, 0.7, 0.65]), np.array([0.5, 0.4]))
    assert found.p_value == pytest.approx(float(ttest_ind([0.6, 0.7, 0.65], [0.5, 0.4], equal_var=False).pvalue))
    assert found.mean == pytest.approx(0.2)
    assert selection.welch(np.array([0.6]), np.array([0.5, 0.4])).ci95 is None
    level = selection.welch(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert (level.p_value, level.mean) == (1.0, 0.0)


IMAGES = 100


def by_class(true: np.ndarray, seeds: int, noise: float, random: np.random.Generator) -> np.ndarray:
    """Accuracies `[seeds, K]` of whole images; what a class gains by luck, others lose."""
    luck = noise * random.standard_normal((seeds, len(true)))
    luck -= luck.mean(axis=1, keepdims=True)
    found: np.ndarray = np.clip(np.round(IMAGES * true + luck), 0, IMAGES) / IMAGES
    return found


@pytest.mark.parametrize("changed", [0.0, 0.3])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("seeds", "paired"), [(2, True), (5, True), (5, False)])
def test_of_the_classes_said_to_differ_one_in_twenty_at_most_does_by_luck(
    seeds: int, paired: bool, noise: float, changed: float
) -> None:
    random, shares = np.random.default_rng(11), []
    for _ in range(REPETITIONS):
        true = random.uniform(0.2, 0.9, 40)
        moved = np.arange(40) < 40 * changed
        shift = np.where(moved, random.choice([-0.1, 0.1], 40), 0.0)
        ours, theirs = (by_class(true + own, seeds, noise, random) for own in (shift, 0 * shift))
        sure = class_gains(ours, theirs, np.full(40, IMAGES), paired=paired).sure
        shares.append((sure & ~moved).sum() / max(1, sure.sum()))
    assert np.mean(shares) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / REPETITIONS)


def test_ten_points_are_found_beneath_the_noise_of_an_image_or_so() -> None:
    random = np.random.default_rng(12)
    true, shift = random.uniform(0.2, 0.9, 40), np.where(np.arange(40) < 12, 0.1, 0.0)
    ours, theirs = by_class(true + shift, 5, 1.0, random), by_class(true, 5, 1.0, random)
    found = class_gains(ours, theirs, np.full(40, IMAGES), paired=True)
    assert found.sure[:12].all()


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_stated_bias_of_the_best_of_some_is_the_simulated_one(seeds: int) -> None:
    values = draws(seeds, 6)
    stated = np.mean([selection.best_of_bias(one) for one in values])
    simulated = np.mean(values.max(axis=1) - TRUE)
    assert simulated == pytest.approx(stated, abs=4 * SPREAD / np.sqrt(REPETITIONS))
    assert stated == pytest.approx(SPREAD * selection.expected_best(seeds), rel=0.08)


def test_the_expected_best_of_normal_numbers_is_the_known_one() -> None:
    known = {1: 0.0, 2: 1 / np.sqrt(np.pi), 3: 1.5 / np.sqrt(np.pi), 5: 1.1629644736, 10: 1.5387527308}
    assert {count: selection.expected_best(count) for count in known} == pytest.approx(known, abs=1e-9)


def test_one_seed_and_an_empty_split_have_no_bias_to_state() -> None:
    assert selection.best_of_bias(np.array([0.5])) is None
    assert selection.best_of_bias(np.array([np.nan, np.nan])) is None


def noisy(shape: np.ndarray, seeds: int, seed: int) -> np.ndarray:
    """Curves `[seeds, E]` of a shape: every seed has a level of its own, and every epoch its noise."""
    random = np.random.default_rng(seed)
    own = SPREAD * random.standard_normal((seeds, 1))
    found: np.ndarray = shape + own + 0.4 * SPREAD * random.standard_normal((seeds, len(shape)))
    return found


def shapes(curve: np.ndarray, seeds: int, repetitions: int) -> list[str]:
    found = [ending(noisy(curve, seeds, seed)) for seed in range(repetitions)]
    return [one.shape for one in found if one is not None]


@pytest.mark.parametrize("epochs", [10, 30, 60])
@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_of_level_curves_one_in_twenty_at_most_is_said_to_stand_on_a_transient(seeds: int, epochs: int) -> None:
    found = shapes(np.full(epochs, TRUE), seeds, REPETITIONS)
    assert 1 - found.count("level") / REPETITIONS < 0.05 + 3 * np.sqrt(0.95 * 0.05 / REPETITIONS)


@pytest.mark.parametrize("epochs", [10, 30, 60])
def test_a_real_fall_is_found_beneath_that_noise(epochs: int) -> None:
    falls = np.concatenate([np.full(epochs // 2, TRUE), np.linspace(TRUE, TRUE - 0.03, epochs - epochs // 2)])
    assert shapes(falls, 5, 100).count("falling") > 90
