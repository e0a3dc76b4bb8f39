"""Coverage and error rates of all statistics on a thousand simulated sweeps with normally distributed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from sweeps.analysis import statistics
from sweeps.analysis.statistics import Comparison, class_gains, curve_trend, estimate, paired, welch

pytestmark = pytest.mark.slow

REPETITIONS = 1000
TRUE = 0.60
SPREAD = 0.01


def draws(seeds: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """`[REPETITIONS, seeds]` accuracies around the true mean."""
    return TRUE + shift + SPREAD * np.random.default_rng(seed).standard_normal((REPETITIONS, seeds))


def near_95(share: float) -> bool:
    """Within four standard errors (0.0069 each) of a share of 0.95 in a thousand."""
    return abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / REPETITIONS)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_the_true_mean_at_the_stated_rate(seeds: int) -> None:
    found = [estimate(one) for one in draws(seeds)]
    assert near_95(np.mean([one is not None and one.low is not None and one.low <= TRUE <= one.high for one in found]))


def covers(gap: Comparison | None, true: float) -> bool:
    assert gap is not None
    return gap.difference.low <= true <= gap.difference.high


def one_in_twenty_differs(equal: list[Comparison | None]) -> None:
    """And interval, p value and verdict agree."""
    apart = [not covers(one, 0) for one in equal]
    assert [one.verdict != "tied" for one in equal] == apart
    assert near_95(1 - np.mean(apart))
    assert [one.p_value < 0.05 for one in equal] == apart


@pytest.mark.parametrize("seeds", [2, 5])
def test_paired_intervals_cover_the_true_gap_where_seeds_share_their_noise(seeds: int) -> None:
    luck, gap = 5 * (draws(seeds, 1) - TRUE), 0.004
    pairs = [
        paired(ours + shared + gap, theirs + shared)
        for ours, theirs, shared in zip(draws(seeds, 2), draws(seeds, 3), luck, strict=True)
    ]
    assert near_95(np.mean([covers(pair, gap) for pair in pairs]))


def test_one_in_twenty_equal_trials_differs_by_the_paired_test() -> None:
    pairs = [paired(ours, theirs) for ours, theirs in zip(draws(5, 4), draws(5, 5), strict=True)]
    one_in_twenty_differs(pairs)


@pytest.mark.parametrize(("seeds", "others", "spread"), [(3, 3, 1), (5, 5, 1), (5, 5, 3), (5, 10, 3), (10, 5, 3)])
def test_welchs_intervals_cover_the_true_gap_whatever_the_spreads(seeds: int, others: int, spread: float) -> None:
    gap = 0.004
    ours, theirs = draws(seeds, 7, gap), TRUE + spread * (draws(others, 8) - TRUE)
    found = [welch(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert near_95(np.mean([covers(one, gap) for one in found]))


def test_one_in_twenty_equal_trials_differs_by_welchs_test() -> None:
    found = [welch(ours, theirs) for ours, theirs in zip(draws(5, 9), draws(5, 10), strict=True)]
    one_in_twenty_differs(found)


IMAGES = 100


def by_class(true: np.ndarray, seeds: int, noise: float, random: np.random.Generator) -> np.ndarray:
    """Accuracies `[seeds, K]` of whole images; what a class gains by noise, others lose."""
    wobble = noise * random.standard_normal((seeds, len(true)))
    wobble -= wobble.mean(axis=1, keepdims=True)
    found: np.ndarray = np.clip(np.round(IMAGES * true + wobble), 0, IMAGES) / IMAGES
    return found


@pytest.mark.parametrize("changed", [0.0, 0.3])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("seeds", "paired"), [(2, True), (5, True), (5, False)])
def test_at_most_one_in_twenty_significant_classes_is_a_false_discovery(
    seeds: int, paired: bool, noise: float, changed: float
) -> None:
    random, shares = np.random.default_rng(11), []
    for _ in range(REPETITIONS):
        true = random.uniform(0.2, 0.9, 40)
        moved = np.arange(40) < 40 * changed
        shift = np.where(moved, random.choice([-0.1, 0.1], 40), 0.0)
        ours, theirs = (by_class(true + own, seeds, noise, random) for own in (shift, 0 * shift))
        found = class_gains(ours, theirs, np.full(40, IMAGES), paired=paired).significant
        shares.append((found & ~moved).sum() / max(1, found.sum()))
    assert np.mean(shares) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / REPETITIONS)


def test_ten_points_are_found_beneath_the_noise_of_an_image_or_so() -> None:
    random = np.random.default_rng(12)
    true, shift = random.uniform(0.2, 0.9, 40), np.where(np.arange(40) < 12, 0.1, 0.0)
    ours, theirs = by_class(true + shift, 5, 1.0, random), by_class(true, 5, 1.0, random)
    found = class_gains(ours, theirs, np.full(40, IMAGES), paired=True)
    assert found.significant[:12].all()


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_stated_bias_of_the_best_of_some_is_the_simulated_one(seeds: int) -> None:
    values = draws(seeds, 6)
    stated = np.mean([statistics.best_of_bias(one) for one in values])
    simulated = np.mean(values.max(axis=1) - TRUE)
    assert simulated == pytest.approx(stated, abs=4 * SPREAD / np.sqrt(REPETITIONS))
    assert stated == pytest.approx(SPREAD * statistics.expected_best(seeds), rel=0.08)


def test_the_expected_best_of_normal_numbers_is_the_known_one() -> None:
    known = {1: 0.0, 2: 1 / np.sqrt(np.pi), 3: 1.5 / np.sqrt(np.pi), 5: 1.1629644736, 10: 1.5387527308}
    assert {count: statistics.expected_best(count) for count in known} == pytest.approx(known, abs=1e-9)


def test_one_seed_and_an_empty_split_have_no_bias_to_state() -> None:
    assert statistics.best_of_bias(np.array([0.5])) is None
    assert statistics.best_of_bias(np.array([np.nan, np.nan])) is None


def noisy(shape: np.ndarray, seeds: int, seed: int) -> np.ndarray:
    """Curves `[seeds, E]` of a shape: every seed has a level of its own, and every epoch its noise."""
    random = np.random.default_rng(seed)
    own = SPREAD * random.standard_normal((seeds, 1))
    found: np.ndarray = shape + own + 0.4 * SPREAD * random.standard_normal((seeds, len(shape)))
    return found


def trends(curve: np.ndarray, seeds: int, repetitions: int) -> list[str]:
    found = [curve_trend(noisy(curve, seeds, seed)) for seed in range(repetitions)]
    return [one.trend for one in found if one is not None]


@pytest.mark.parametrize("epochs", [10, 30, 60])
@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_at_most_one_in_twenty_stable_curves_is_called_otherwise(seeds: int, epochs: int) -> None:
    found = trends(np.full(epochs, TRUE), seeds, REPETITIONS)
    assert 1 - found.count("stable") / REPETITIONS < 0.05 + 3 * np.sqrt(0.95 * 0.05 / REPETITIONS)


@pytest.mark.parametrize("epochs", [10, 30, 60])
def test_a_real_decline_is_found_under_that_noise(epochs: int) -> None:
    falls = np.concatenate([np.full(epochs // 2, TRUE), np.linspace(TRUE, TRUE - 0.03, epochs - epochs // 2)])
    assert trends(falls, 5, 100).count("declining") > 90
