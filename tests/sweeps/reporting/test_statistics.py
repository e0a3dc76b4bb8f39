"""The statistics that a report states, against a thousand simulated sweeps of normal seeds; nothing is trained."""

from __future__ import annotations

import numpy as np
import pytest

from sweeps import selection
from sweeps.reporting.judgements import ending

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


@pytest.mark.parametrize("seeds", [2, 5])
def test_paired_intervals_cover_the_true_gap_although_seeds_share_their_luck(seeds: int) -> None:
    luck, gap = 5 * (draws(seeds, 1) - TRUE), 0.004
    pairs = [
        selection.paired(ours + shared + gap, theirs + shared)
        for ours, theirs, shared in zip(draws(seeds, 2), draws(seeds, 3), luck, strict=True)
    ]
    assert near_95(np.mean([pair.ci95 is not None and pair.ci95.low <= gap <= pair.ci95.high for pair in pairs]))


def test_of_equal_settings_one_in_twenty_is_told_apart_and_the_interval_says_what_the_p_value_does() -> None:
    pairs = [selection.paired(ours, theirs) for ours, theirs in zip(draws(5, 4), draws(5, 5), strict=True)]
    apart = [pair.ci95 is not None and not pair.ci95.low <= 0 <= pair.ci95.high for pair in pairs]
    assert near_95(1 - np.mean(apart))
    assert [pair.p_value is not None and pair.p_value < 0.05 for pair in pairs] == apart


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
