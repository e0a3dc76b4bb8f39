"""Intervals over images, seeds and backbones: hand values, limits, identities, coverage, invalid input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lt_train.core.errors import UserError
from sweeps.analysis.averages import ClassAverage
from sweeps.analysis.intervals import CoveredEstimate, Gain, accuracy, correct_for_comparisons, gain, holm

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    global RNG
    RNG = np.random.default_rng(7)


def ends(found: CoveredEstimate | Gain | None) -> tuple[float | None, ...]:
    assert found is not None
    one = found.difference if isinstance(found, Gain) else found
    return one.value, one.low, one.high


def outcomes(seeds: int, counts: list[int], share: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Random outcomes of which seeds share most, and labels in random order."""
    labels = RNG.permutation(np.repeat(np.arange(len(counts)), counts))
    image = RNG.random(len(labels))
    own = RNG.random((seeds, len(labels)))
    return np.where(own < 0.2, RNG.random((seeds, len(labels))), image) < share, labels


# One seed: over images alone


@pytest.mark.parametrize("right", [0, 1, 7, 19, 20])
def test_one_class_and_one_seed_is_wilsons_interval(right: int) -> None:
    found = accuracy([np.arange(20) < right], ClassAverage(np.zeros(20, dtype=int)))
    expected = stats.binomtest(right, 20).proportion_ci(method="wilson")
    assert ends(found) == pytest.approx((right / 20, expected.low, expected.high))


@pytest.mark.parametrize("right", [False, True])
def test_all_right_or_all_wrong_is_wilsons_interval_of_the_effective_number(right: bool) -> None:
    """Sums of weights and values are then 1 or 0 but for rounding."""
    for classes in range(2, 60):
        counts = np.arange(2, 2 + classes)
        average = ClassAverage(np.repeat(np.arange(classes), counts))
        found = accuracy(np.full((3, average.total), right), average)
        square = stats.t.ppf(0.975, average.degrees_of_freedom) ** 2
        end = square / (classes**2 / (1 / counts).sum() + square)
        assert ends(found) == pytest.approx((1, 1 - end, 1) if right else (0, 0, end))


def test_the_variance_over_images_is_stratified_with_n_minus_one() -> None:
    correct = np.array([[1, 1, 0, 1, 0, 0]])
    macro = ClassAverage([0, 0, 0, 0, 1, 1])
    found = accuracy(correct, macro)
    assert found is not None
    assert (found.value, found.covers) == (0.375, ("images",))
    assert found.variance == {"images": pytest.approx(0.25 * (0.25 / 4 + 0 / 2))}
    micro = accuracy(correct, ClassAverage([0, 0, 0, 0, 1, 1], average="micro"))
    assert micro is not None
    assert (micro.value, micro.variance["images"]) == pytest.approx((0.5, (4 / 6) ** 2 * 0.25 / 4))


def test_a_gain_of_one_seed_is_students_t_on_differences_by_image() -> None:
    labels = np.repeat([0, 1], 20)
    ours, theirs = (RNG.random((2, 1, 40)) < 0.6).astype(float)
    found = gain(ours, theirs, ClassAverage(labels))
    difference = (ours - theirs)[0]
    variance = sum(difference[labels == k].var(ddof=1) / 20 for k in (0, 1)) / 4 + 0.25 / 40**2
    half = stats.t.ppf(0.975, 38) * math.sqrt(variance)
    center = difference.mean()
    assert ends(found) == pytest.approx((center, center - half, center + half))
    assert found is not None
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(center) / math.sqrt(variance), 38))


def test_the_p_value_is_close_to_mcnemars_mid_p() -> None:
    """Five images differ, all in favor of the first: exact p 0.0625, mid-p 0.0312."""
    theirs = np.zeros((1, 30))
    ours = (np.arange(30) < 5)[None].astype(float)
    found = gain(ours, theirs, ClassAverage(np.zeros(30, dtype=int)))
    assert found is not None
    assert found.p_value == pytest.approx(0.0312, abs=0.006)


# Limits over seeds and backbones


def test_without_variance_over_images_the_interval_is_students_over_seeds() -> None:
    a, b = np.array([0.80, 0.82, 0.79, 0.85, 0.81]), np.array([0.78, 0.81, 0.80, 0.80, 0.79, 0.84])
    average = ClassAverage(np.zeros(50_000, dtype=int))
    of_a, of_b = (np.repeat(one[:, None], 50_000, axis=1) for one in (a, b))
    found = accuracy(of_a, average)
    expected = stats.t.interval(0.95, 4, a.mean(), stats.sem(a))
    assert ends(found) == pytest.approx((a.mean(), *expected), abs=1e-6)
    assert found is not None
    assert (found.seeds_only.low, found.seeds_only.high) == pytest.approx(expected)
    paired = gain(of_a, of_b[:5], average)
    test = stats.ttest_rel(a, b[:5])
    assert ends(paired) == pytest.approx(((a - b[:5]).mean(), *test.confidence_interval()), abs=1e-6)
    unpaired = gain(of_a, of_b, average)
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert ends(unpaired) == pytest.approx((a.mean() - b.mean(), *welch.confidence_interval()), abs=1e-6)
    for one, reference in ((paired, test), (unpaired, welch)):
        assert one is not None
        assert one.p_value == pytest.approx(reference.pvalue, abs=1e-5)
    backbones = accuracy(of_a[:3, None], average)
    assert ends(backbones)[1:] == pytest.approx(stats.t.interval(0.95, 2, a[:3].mean(), stats.sem(a[:3])), abs=1e-6)


def test_equal_seeds_give_the_interval_of_one_seed() -> None:
    (row,), labels = outcomes(1, [30, 20, 5])
    average = ClassAverage(labels)
    one, five = accuracy([row], average), accuracy([row] * 5, average)
    assert ends(five) == pytest.approx(ends(one))
    assert five is not None
    assert (five.covers, five.variance["seeds"]) == (("images", "seeds"), 0.0)
    assert (five.seeds_only.low, five.seeds_only.high) == pytest.approx((five.value, five.value))
    both = gain([row] * 5, [row] * 5, average)
    assert both is not None
    assert (both.difference.value, both.p_value, both.verdict) == (0.0, 1.0, "tied")


def test_the_variance_over_seeds_is_that_of_a_crossed_analysis_of_variance() -> None:
    values = RNG.random((4, 12)) + 2 * np.array([[0.0], [0.1], [0.2], [0.0]])
    values /= values.max()
    found = accuracy(values, ClassAverage(np.zeros(12, dtype=int)))
    of_seeds = 12 * values.mean(axis=1).var(ddof=1)
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    mixed = (residual**2).sum() / (3 * 11)
    assert found is not None
    assert found.variance["seeds"] == pytest.approx((of_seeds - mixed) / 48)
    assert found.variance["images"] == pytest.approx(values.mean(axis=0).var(ddof=1) / 12)


def test_backbones_are_covered_where_there_are_several() -> None:
    runs = [outcomes(seeds, [40, 40])[0] for seeds in (3, 1, 5)]
    average = ClassAverage(np.repeat([0, 1], 40))
    found = accuracy(runs, average)
    assert found is not None
    assert found.covers == ("images", "seeds", "backbones")
    assert found.notes == ()
    assert found.value == pytest.approx(np.mean([run.mean() for run in runs]))
    stacked = np.stack([runs[0], runs[2][:3]])
    assert ends(accuracy(stacked, average)) == pytest.approx(ends(accuracy(list(stacked), average)))
    other = gain(runs, runs[::-1], average)
    assert other is not None
    assert not other.paired_seeds


def test_few_backbones_count_by_their_share_of_the_variance() -> None:
    """Satterthwaite's formula would square the shares, which gives more degrees of freedom and too short intervals."""
    runs, labels = outcomes(3, [60, 60])
    shifted = [[run] for run in runs * np.array([[0.8], [1.0], [0.9]])]
    found = gain(shifted, np.zeros_like(shifted), ClassAverage(labels))
    assert found is not None
    variance = found.difference.variance
    observed = np.array([one[0].mean() for one in shifted]).var(ddof=1) / 3
    images = variance["images"] + 0.25 / 120**2
    total = images + variance["backbones"]
    expected = 1 / (observed / total / 2 + images / total / 118)
    assert found.difference.degrees_of_freedom == pytest.approx(expected)


# Identities


@pytest.mark.parametrize("seeds", [1, 5])
def test_micro_and_macro_agree_on_balanced_sets(seeds: int) -> None:
    correct, labels = outcomes(seeds, [12] * 6)
    macro, micro = (accuracy(correct, ClassAverage(labels, average=one)) for one in ("macro", "micro"))
    assert ends(macro) == pytest.approx(ends(micro))


def test_order_of_images_seeds_classes_and_backbones_does_not_matter() -> None:
    correct, labels = outcomes(6, [30, 11, 2, 1, 1, 1])
    runs = correct.reshape(2, 3, -1)
    images, names = RNG.permutation(len(labels)), np.array([3, 0, 5, 1, 2, 4])
    sizes = np.array([90, 40, 9, 8, 7, 6])
    moved = ClassAverage(names[labels[images]], sizes=sizes[np.argsort(names)])
    assert ends(accuracy(runs[::-1, ::-1][..., images], moved)) == pytest.approx(
        ends(accuracy(runs, ClassAverage(labels, sizes=sizes)))
    )


def test_exchanged_trials_give_the_opposite_gain() -> None:
    (ours, labels), theirs = outcomes(5, [25, 25], 0.8), outcomes(5, [25, 25], 0.5)[0]
    forth, back = (gain(*pair, ClassAverage(labels)) for pair in ((ours, theirs), (theirs, ours)))
    value, low, high = ends(forth)
    assert low is not None
    assert high is not None
    assert ends(back) == pytest.approx((-value, -high, -low))
    assert forth is not None
    assert back is not None
    assert (forth.verdict, back.verdict) == ("better", "worse")


# What is left out


def test_unknown_labels_and_classes_without_images_are_left_out_and_named() -> None:
    correct, labels = outcomes(3, [20, 20, 20])
    hidden = np.where(labels == 1, -1, labels)
    average = ClassAverage(hidden, split=np.array([True, True, True, True]))
    kept = ClassAverage(labels[labels != 1])
    assert ends(accuracy(correct, average)) == pytest.approx(ends(accuracy(correct[:, labels != 1], kept)))
    assert average.notes == (
        "Without test images, and left out: classes 1, 3.",
        "20 of 60 test images have no known label and are left out.",
    )
    few = ClassAverage(labels, split=np.array([False, False, True]))
    assert ends(accuracy(correct, few))[0] == pytest.approx(correct[:, labels == 2].mean())
    empty = ClassAverage(labels, split=np.zeros(3, dtype=bool))
    assert accuracy(correct, empty) is None
    assert gain(correct, correct, empty) is None


def test_classes_with_one_image_are_pooled_with_classes_of_similar_size() -> None:
    """The 20 largest classes are right, the 20 smallest wrong: no variance in groups of ten of similar size."""
    sizes = RNG.permutation(40)
    correct = (sizes >= 20)[None]
    by_size = ClassAverage(np.arange(40), sizes=sizes)
    assert by_size.image_variance(correct.astype(float)) == pytest.approx(0)
    assert by_size.degrees_of_freedom == pytest.approx(36)
    assert "One test image in 40 classes (0, 1, " in by_size.notes[0]
    one_group = ClassAverage(np.arange(5), average="micro")
    row = np.array([1.0, 0, 1, 1, 0])
    assert one_group.image_variance(row) == pytest.approx(row.var(ddof=1) / 5)
    lone = ClassAverage([0, 0, 0, 0, 1])
    assert lone.image_variance(np.array([1.0, 0, 1, 1, 0])) == pytest.approx(0.25 * 0.25 * (1 / 4 + 1))


def test_what_is_not_covered_is_named() -> None:
    single = accuracy([[1]], ClassAverage([0]))
    assert single is not None
    assert (single.low, single.covers, single.degrees_of_freedom) == (None, (), 0)
    assert [note.split(":")[0] for note in single.notes] == ["One test image", "One seed", "One backbone"]
    seeds = accuracy([[0.2], [0.4], [0.3]], ClassAverage([0]))
    assert seeds is not None
    assert seeds.covers == ("seeds",)
    assert (seeds.low, seeds.high) == pytest.approx(stats.t.interval(0.95, 2, 0.3, stats.sem([0.2, 0.4, 0.3])))
    alone = gain([[1]], [[0]], ClassAverage([0]))
    assert alone is not None
    assert (alone.p_value, alone.verdict) == (None, "undecided")


# Verdicts


@pytest.mark.parametrize(
    ("right", "seeds", "verdict"),
    [(0, 1, "tied"), (2, 1, "tied"), (40, 1, "undecided"), (400, 1, "better"), (8, 5, "tied"), (40, 5, "better")],
)
def test_verdicts_need_a_relevant_and_significant_gain(right: int, seeds: int, verdict: str) -> None:
    """Gains of `right` in 10,000 images: at least 0.1 points count, 0.5 points where other seeds are not covered."""
    ours = np.repeat((np.arange(10_000) < right)[None], seeds, axis=0)
    average = ClassAverage(np.zeros(10_000, dtype=int))
    found = gain(ours, np.zeros_like(ours), average)
    assert found is not None
    assert found.verdict == verdict
    opposite = gain(np.zeros_like(ours), ours, average)
    assert opposite is not None
    assert opposite.verdict == {"better": "worse"}.get(verdict, verdict)


def test_equivalence_needs_an_interval_within_the_margin() -> None:
    large, small = (ClassAverage(np.zeros(images, dtype=int)) for images in (10_000, 100))
    for average, expected in ((large, "tied"), (small, "undecided")):
        rows = RNG.random((5, average.total)) < 0.05
        found = gain(rows, rows[:, ::-1], average, equivalence=True)
        assert found is not None
        assert found.verdict == expected


def test_holm_multiplies_by_the_number_of_remaining_tests() -> None:
    found = holm([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, np.nan, 0.06, 0.06, 0.02])
    assert holm([]).size == 0
    (ours, labels), theirs = outcomes(5, [60, 60], 0.8), outcomes(5, [60, 60], 0.62)[0]
    one = gain(ours, theirs, ClassAverage(labels))
    assert one is not None
    assert one.p_value is not None
    table = [replace(one, p_value=p) for p in (0.02, 0.04, None)]
    corrected = correct_for_comparisons(table)
    assert [one.p_value for one in corrected] == [0.04, 0.04, None]
    assert [one.verdict for one in corrected] == ["better", "better", "undecided"]
    many = correct_for_comparisons([replace(one, p_value=0.02)] * 3)
    assert {one.verdict for one in many} == {"tied"}


# Coverage; benchmarks/interval_coverage.py is the full simulation


@pytest.mark.parametrize("seeds", [1, 5])
def test_intervals_cover_the_truth_on_an_imbalanced_test_set(seeds: int) -> None:
    """Of 2,000 intervals; 93% is four standard errors below 95%."""
    rng = np.random.default_rng(3)
    counts, share = np.array([60, 20, 8, 4, 3, 2]), np.array([0.9, 0.8, 0.7, 0.5, 0.4, 0.3])
    labels = np.repeat(np.arange(6), counts)
    average = ClassAverage(labels)
    inside = gains = 0
    for _ in range(2000):
        effect = 0.02 * rng.standard_normal((2, seeds, 1))
        image, other = rng.random((2, len(labels)))
        ours, theirs = image < share[labels] + effect[0], np.where(other < 0.4, other / 0.4, image) < share[labels]
        found, difference = accuracy(ours, average), gain(ours, np.broadcast_to(theirs, ours.shape), average)
        truth = share + (0 if seeds > 1 else effect[0, 0, 0])
        _, low, high = ends(found)
        assert low is not None
        assert high is not None
        inside += low <= truth.mean() <= high
        _, low, high = ends(difference)
        assert low is not None
        assert high is not None
        gains += low <= (truth - share).mean() <= high
    assert inside >= 0.93 * 2000
    assert gains >= 0.93 * 2000


# Invalid input


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"labels": [0.0, 1.0]}, "labels must be integers"),
        ({"labels": [[0, 1]]}, "labels must be integers"),
        ({"labels": [0, -2]}, "-2 to 0"),
        ({"labels": [0, 3], "split": np.ones(3, dtype=bool)}, "in \\[-1, 3\\)"),
        ({"labels": [0, 1], "split": np.array([1, 1])}, "split must be a mask"),
        ({"labels": [0, 1], "split": np.ones(2, dtype=bool), "sizes": [5]}, "shape \\[1\\]"),
        ({"labels": [0, 1], "average": "weighted"}, "macro or micro"),
    ],
)
def test_averages_refuse_invalid_input(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ClassAverage(**options)


@pytest.mark.parametrize(
    ("correct", "named"),
    [
        ([[1, 0]], "shape \\[S, 3\\]"),
        ([1, 0, 1], "shape \\[S, 3\\]"),
        (np.zeros((0, 3)), "shape \\[S, 3\\]"),
        ([[1, 0, 2]], "0.0 to 2.0"),
        ([[1, 0, np.nan]], "right \\(1\\) or wrong"),
    ],
)
def test_intervals_refuse_invalid_input(correct: Any, named: str) -> None:
    average = ClassAverage([0, 1, 1])
    for call in (lambda: accuracy(correct, average), lambda: gain([[1, 1, 1]], correct, average)):
        with pytest.raises(UserError, match=named):
            call()


def test_pairs_must_match() -> None:
    average = ClassAverage([0, 1, 1])
    with pytest.raises(UserError, match=r"\[3\] of ours and \[2\] of theirs"):
        gain(np.ones((3, 3)), np.ones((2, 3)), average, paired_seeds=True)
    with pytest.raises(UserError, match="2 backbones of ours and 1 of theirs"):
        gain(np.ones((2, 3, 3)), np.ones((3, 3)), average)
