"""Intervals of accuracies and gains that cover test images, seeds and backbones; docs/statistics.md has the formulas.

Pure functions on which images are right. An accuracy is a weighted mean over classes; classes are strata of the test
set. Images are crossed with seeds and backbones, because all runs are judged on the same images; seeds are nested in
backbones.

Shapes: R backbones, S seeds, N test images, K classes, H strata. Fractions of 1 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from lt_train.core.errors import UserError
from sweeps.analysis.averages import ClassAverage
from sweeps.analysis.statistics import LEVEL, MARGIN, ONE_SEED_LEVEL, ROUNDING, Array, Estimate, Verdict

__all__ = [
    "CoveredEstimate",
    "Gain",
    "Levels",
    "Moments",
    "Runs",
    "Source",
    "accuracy",
    "accuracy_of",
    "correct_for_comparisons",
    "gain",
    "gain_of",
    "holm",
]

Source = Literal["images", "seeds", "backbones"]
Runs = ArrayLike | Sequence[ArrayLike]
"""Right or wrong by image: `[S, N]`, or `[R, S, N]`, or one `[S, N]` per backbone with its own number of seeds."""

FLOOR = 0.25
"""Variance that is added over images, in units of one image of the average.

Where hardly an image differs, the estimated variance is too small or 0. The term stands for a quarter of an image that
differs; with 200 images or more it hardly matters.
"""

SATTERTHWAITE = 4
"""Fewest degrees of freedom over seeds or backbones for which Satterthwaite's formula is used (docs/statistics.md)."""


@dataclass(frozen=True)
class CoveredEstimate:
    """An accuracy or a difference of accuracies with a 95% interval, and what the interval covers.

    Attributes:
        value: mean over backbones and seeds.
        low, high: ends of the two-sided 95% interval; None where nothing is covered.
        covers: what was random in the interval.
        variance: variance of `value` by what is covered; `low` and `high` follow from the sum.
        degrees_of_freedom: Satterthwaite's, of the sum; 0 where nothing is covered.
        seeds_only: the interval over seeds alone (Student's t), for these images and backbones.
        notes: what is not covered or left out, one sentence each.
    """

    value: float
    low: float | None
    high: float | None
    covers: tuple[Source, ...]
    variance: dict[Source, float]
    degrees_of_freedom: float
    seeds_only: Estimate
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Gain:
    """A difference of two accuracies on the same images, with its test.

    Attributes:
        difference: the first minus the second.
        p_value: two-sided, of no difference; None where nothing is covered.
        paired_seeds: whether equal rows belong to the same seed.
        verdict: `better` or `worse`; `tied` where the test finds no difference, or one that is too small to matter;
            `undecided` where the difference is small and nothing is known about other seeds. With `equivalence`, `tied`
            only where the interval lies within `MARGIN` of 0, else `undecided`.
        equivalence: whether the verdict requires an interval within `MARGIN` to call a tie.
    """

    difference: CoveredEstimate
    p_value: float | None
    paired_seeds: bool
    verdict: Verdict
    equivalence: bool = False


@dataclass(frozen=True)
class Levels:
    """Averages of J seeds or backbones, and what test images contribute to their variance.

    Attributes:
        means: average of each level `[J]`.
        single: variance of the average of one level over test images, mean over levels.
        averaged: variance over test images of the mean over levels.
    """

    means: Array
    single: float
    averaged: float

    @property
    def observed(self) -> float:
        """Variance of the mean over levels, as the spread of the levels shows it."""
        return float(self.means.var(ddof=1)) / len(self.means)

    @property
    def excess(self) -> float:
        """The part of `observed` beyond chance that differs by image and level, which is in `averaged` already."""
        count = len(self.means)
        excess = self.observed - max(0.0, self.single - self.averaged) / (count - 1)
        return excess if excess > max(ROUNDING * self.observed, ROUNDING**2) else 0.0


@dataclass(frozen=True)
class Moments:
    """What intervals need to know of the images.

    Attributes:
        backbones: averages by backbone, over seeds.
        seeds: for each backbone, averages by seed; two sets for a difference of trials whose seeds are not paired.
    """

    backbones: Levels
    seeds: list[list[Levels]]


def accuracy(correct: Runs, average: ClassAverage) -> CoveredEstimate | None:
    """Accuracy of one trial with its interval; None for an empty split.

    Over images, Wilson's interval with an effective number of images. The variance over seeds and backbones is added to
    each of its sides in quadrature.

    Args:
        correct: right (1) or wrong (0) by image, or a fraction between.
        average: which images are averaged, and how.

    Raises:
        UserError: a value is outside [0, 1], or the number of images is another than in `average`.
    """
    runs = _runs(correct, average, "correct")
    return accuracy_of(_moments([[run] for run in runs], average), average) if average.images else None


def accuracy_of(moments: Moments, average: ClassAverage) -> CoveredEstimate:
    """The interval of `accuracy` from the moments of the images."""
    found = _Mean.of(moments, average)
    p = found.value
    if min(p, 1 - p) < ROUNDING:
        p = float(round(p))  # the weights of all images may add up to 1 but for rounding
    if not found.covers:
        return found.result(None, None, 0.0)
    below = above = floor = 0.0
    if "images" in found.covers:
        plain = p * (1 - p) / average.effective
        floor = max(0.0, min(FLOOR * ((1 - p) ** 2 + p**2) / average.effective**2, plain - found.images))
    quantile, freedom = found.quantile(floor)
    if "images" in found.covers:
        images = p * (1 - p) / (found.images + floor) if plain else average.effective
        below, above = _wilson(p, images, quantile)
        if average.evenly:
            known, _ = replace(found, images=plain, images_freedom=math.inf).quantile(0.0)
            below, above = map(min, (below, above), _wilson(p, average.effective, known))
    levels = quantile**2 * (found.seeds + found.backbones)
    low, high = p - math.sqrt(below**2 + levels), p + math.sqrt(above**2 + levels)
    return found.result(max(0.0, low), min(1.0, high), freedom)


def gain(
    ours: Runs, theirs: Runs, average: ClassAverage, *, paired_seeds: bool | None = None, equivalence: bool = False
) -> Gain | None:
    """Difference of two trials on the same images, `ours` minus `theirs`; None for an empty split.

    Student's t with Satterthwaite's degrees of freedom, on differences by image. A method that trains nothing has one
    run that stands for every seed: repeat its row.

    Args:
        ours: right (1) or wrong (0) by image, as for `accuracy`.
        theirs: the same of the other trial, with the same images, and the same backbones in the same order.
        average: which images are averaged, and how.
        paired_seeds: whether equal rows belong to the same seed; by default where there are equally many.
        equivalence: whether a tie requires an interval within `MARGIN` of 0.

    Raises:
        UserError: as for `accuracy`; or numbers of backbones, or of seeds that are to be paired, differ.
    """
    a, b = _runs(ours, average, "ours"), _runs(theirs, average, "theirs")
    if len(a) != len(b):
        raise UserError(f"gains are paired by backbone, got {len(a)} backbones of ours and {len(b)} of theirs")
    seeds = [[len(run) for run in side] for side in (a, b)]
    if paired_seeds and seeds[0] != seeds[1]:
        raise UserError(f"paired seeds need equally many rows, got {seeds[0]} of ours and {seeds[1]} of theirs")
    if average.images == 0:
        return None
    pair = seeds[0] == seeds[1] if paired_seeds is None else paired_seeds
    sides = zip(a, b, strict=True)
    moments = _moments([[one - other] if pair else [one, -other] for one, other in sides], average)
    return gain_of(moments, average, paired_seeds=pair, equivalence=equivalence)


def gain_of(moments: Moments, average: ClassAverage, *, paired_seeds: bool = True, equivalence: bool = False) -> Gain:
    """The gain of `gain` from the moments of the differences by image."""
    found = _Mean.of(moments, average)
    low = high = p_value = None
    freedom = 0.0
    if found.covers:
        floor = FLOOR / average.effective**2 if "images" in found.covers else 0.0
        quantile, freedom = found.quantile(floor)
        error = math.sqrt(found.images + found.seeds + found.backbones + floor)
        low, high = max(-1.0, found.value - quantile * error), min(1.0, found.value + quantile * error)
        p_value = 2 * float(special.stdtr(freedom, -abs(found.value) / error)) if error else 1.0
    difference = found.result(low, high, freedom)
    return Gain(difference, p_value, paired_seeds, _verdict(difference, p_value, equivalence), equivalence)


def holm(p_values: ArrayLike) -> Array:
    """Adjusted p values of several tests `[M]` by Holm's procedure; NaN is not counted as a test.

    At most 5% of all tables have an adjusted p value below 0.05 without a difference, whatever the dependence.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")  # NaN comes last
    count = int((~np.isnan(given)).sum())
    steps = np.maximum.accumulate(given[order[:count]] * np.arange(count, 0, -1))
    adjusted = np.full(given.shape, np.nan)
    adjusted[order[:count]] = np.minimum(steps, 1.0)
    return adjusted


def correct_for_comparisons(gains: Sequence[Gain]) -> list[Gain]:
    """The gains of one table with p values and verdicts corrected by Holm's procedure; intervals stay those of one."""
    adjusted = holm([math.nan if one.p_value is None else one.p_value for one in gains])
    corrected = []
    for one, p in zip(gains, adjusted, strict=True):
        p_value = None if one.p_value is None else float(p)
        verdict = _verdict(one.difference, p_value, one.equivalence)
        corrected.append(replace(one, p_value=p_value, verdict=verdict))
    return corrected


def _moments(backbones: list[list[Array]], average: ClassAverage) -> Moments:
    """Moments of a sum of sets of seeds: for each backbone one set `[S, N]`, or two that share no seeds."""
    sets = [[_levels(run, average) for run in one] for one in backbones]
    by_image = np.stack([np.sum([run.mean(axis=0) for run in one], axis=0) for one in backbones])
    return Moments(_levels(by_image, average), sets)


def _levels(values: Array, average: ClassAverage) -> Levels:
    single = average.image_variance(values)
    return Levels(average.means(values), float(single.mean()), float(average.image_variance(values.mean(axis=0))))


@dataclass(frozen=True)
class _Mean:
    """A mean with its variance by source; `terms` are the estimates over seeds or backbones, and their freedom."""

    value: float
    covers: tuple[Source, ...]
    images: float
    images_freedom: float
    seeds: float
    backbones: float
    terms: tuple[tuple[float, float], ...]
    seeds_only: Estimate
    notes: tuple[str, ...]

    @classmethod
    def of(cls, moments: Moments, average: ClassAverage) -> _Mean:
        backbones, value = moments.backbones, float(moments.backbones.means.mean())
        count = len(backbones.means)
        sets = [one for of_backbone in moments.seeds for one in of_backbone]
        covers: list[Source] = ["images"] if average.degrees_of_freedom else []
        notes = [*average.notes]
        if not covers:
            notes.append("One test image: the interval does not cover other images.")
        seeds = between = 0.0
        terms: list[tuple[float, float]] = []
        seeds_only = Estimate(value)
        if all(len(one.means) > 1 for one in sets):
            covers.append("seeds")
            seeds = sum(one.excess for one in sets) / count**2
            observed = [(one.observed / count**2, len(one.means) - 1.0) for one in sets]
            terms = [term for term, one in zip(observed, sets, strict=True) if one.excess]
            total = sum(variance for variance, _ in observed)
            half = float(special.stdtrit(_freedom(total, observed), 0.975)) * math.sqrt(total)
            seeds_only = Estimate(value, value - half, value + half)
        if count > 1:
            covers = [*(one for one in covers if one != "seeds"), "seeds", "backbones"]
            if backbones.excess > seeds:
                between, terms = backbones.excess - seeds, [(backbones.observed, count - 1.0)]
        else:
            if "seeds" not in covers:
                notes.append("One seed: the interval does not cover other seeds.")
            notes.append("One backbone: the interval does not cover other backbones.")
        images, freedom = backbones.averaged, average.degrees_of_freedom
        return cls(value, tuple(covers), images, freedom, seeds, between, tuple(terms), seeds_only, tuple(notes))

    def quantile(self, floor: float) -> tuple[float, float]:
        """Two-sided 95% quantile of Student's t and Satterthwaite's degrees of freedom, with `floor` over images."""
        total = self.images + floor + self.seeds + self.backbones
        freedom = _freedom(total, [*self.terms, (self.images + floor, self.images_freedom)])
        return float(special.stdtrit(freedom, 0.975)), freedom

    def result(self, low: float | None, high: float | None, freedom: float) -> CoveredEstimate:
        """The estimate with given ends of the interval."""
        by_source: dict[Source, float] = {"images": self.images, "seeds": self.seeds, "backbones": self.backbones}
        variance = {source: by_source[source] for source in self.covers}
        return CoveredEstimate(self.value, low, high, self.covers, variance, freedom, self.seeds_only, self.notes)


def _freedom(total: float, terms: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of estimated variances (variance, degrees of freedom): Satterthwaite's.

    With few degrees of freedom, an estimate that is too small by chance also counts too little in Satterthwaite's
    formula, and the interval is too narrow. Then it is the harmonic mean, weighted by variance.
    """
    known = [(variance, freedom) for variance, freedom in terms if freedom and variance]
    power = 2 if min((freedom for _, freedom in known), default=SATTERTHWAITE) >= SATTERTHWAITE else 1
    spread = sum((variance / total) ** power / freedom for variance, freedom in known)
    largest = sum(freedom for _, freedom in terms)
    return min(1 / spread if spread else math.inf, max(largest, 1.0))


def _wilson(p: float, images: float, quantile: float) -> tuple[float, float]:
    """Lengths of the sides of Wilson's interval below and above `p`, for a number of images that need not be whole."""
    square = quantile**2 / images
    center = (p + square / 2) / (1 + square)
    half = math.sqrt(square * p * (1 - p) + square**2 / 4) / (1 + square)
    return p - (center - half), center + half - p


def _verdict(difference: CoveredEstimate, p_value: float | None, equivalence: bool) -> Verdict:
    if difference.low is None or difference.high is None or p_value is None:
        return "tied" if abs(difference.value) < ROUNDING else "undecided"
    covered = "seeds" in difference.covers
    if p_value < 0.05 and abs(difference.value) > (LEVEL if covered else ONE_SEED_LEVEL):
        return "better" if difference.value > 0 else "worse"
    if equivalence:
        return "tied" if max(-difference.low, difference.high) <= MARGIN else "undecided"
    return "tied" if covered or p_value >= 0.05 else "undecided"


def _runs(correct: Runs, average: ClassAverage, name: str) -> list[Array]:
    """One array `[S, N]` per backbone."""
    given: Any = correct
    nested = isinstance(given, (list, tuple)) and len(given) > 0 and np.ndim(given[0]) == 2
    parts = [np.asarray(one) for one in given] if nested else [np.asarray(given)]
    runs = [np.asarray(run, dtype=np.float64) for part in parts for run in (part if part.ndim == 3 else [part])]
    for run in runs:
        if run.ndim != 2 or len(run) == 0 or run.shape[1] != average.total:
            raise UserError(
                f"{name} must have shape [S, {average.total}], a row per seed and a column per label, "
                f"got {list(run.shape)}"
            )
        if not (np.min(run, initial=0.0) >= 0 and np.max(run, initial=1.0) <= 1):
            raise UserError(f"{name} must be right (1) or wrong (0) or between, got {np.min(run)} to {np.max(run)}")
    if not runs:
        raise UserError(f"{name} has no backbones, at least one is needed")
    return runs
