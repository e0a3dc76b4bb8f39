"""Which trial wins, by which numbers, and how sure we are. Pure functions over finished records.

Touch this to change a statistic. Knows records and numpy; no search, ledger or tracking. Columns are those of
`lt_train.metrics.accuracy.SPLITS`; accuracies are fractions; an empty split is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lt_train.metrics.accuracy import SPLITS
from sweeps.store.ledger import Record

__all__ = [
    "ROUNDING",
    "ExtendedTraining",
    "Interval",
    "MeanDifference",
    "best_of_bias",
    "best_seed",
    "best_told",
    "chosen_over",
    "ended",
    "expected_best",
    "extended_training",
    "finalists_told",
    "interval",
    "mean",
    "mean_of_all",
    "objective",
    "paired",
    "reported",
    "seeds_told",
    "stopped",
    "surely_above",
    "welch",
]

Array = NDArray[np.float64]

ROUNDING = 1e-9
"""Differences of accuracies below this are float64 rounding: one image in a billion."""

LEVEL = 0.001
"""Accuracies along epochs whose means differ by less than a tenth of a point are level, whatever the seeds say."""

ONE_SEED_LEVEL = 0.005
"""The same where the seeds say nothing of their noise: one alone, or several that agree to the image."""

MARGIN = 0.01
"""A run trained longer is called level only where its 95% interval lies within a point of what it is held against."""


@dataclass(frozen=True)
class Interval:
    """A two-sided 95% confidence interval of a mean."""

    low: float
    high: float


@dataclass(frozen=True)
class MeanDifference:
    """Mean of a less that of b, its 95% interval and the two-sided p value of the t test that belongs to it.

    There is no p value, and no interval either, for fewer than two seeds. Where seeds agree to the image the interval
    has no width and there is no p value, unless the difference is zero.
    """

    mean: float
    ci95: Interval | None
    p_value: float | None


def reported(records: Sequence[Record], on: Literal["val", "test"] = "test") -> Array:
    """Accuracies `[S, 4]` of each seed's run at the epoch that counts."""
    rows = [(record.val if on == "val" else record.test) or [] for record in records]
    picked: list[Any] = [row[record.epoch] for row, record in zip(rows, records, strict=True)]
    return np.array(picked, dtype=np.float64).reshape(len(records), len(SPLITS))


def ended(records: Sequence[Record], on: Literal["val", "test"] = "test") -> Array:
    """Accuracies `[S, 4]` of each seed's run at its last epoch, whichever counts."""
    rows: list[Any] = [((record.val if on == "val" else record.test) or [])[-1] for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), len(SPLITS))


def objective(
    records: Sequence[Record], *, metric: str, on: Literal["val", "test"], how: Literal["mean", "best"]
) -> float | None:
    """What a trial is judged by: mean or best over its seeds; None when any of its runs failed or saw no image.

    A failed seed fails the trial: leaving it out would reward settings that diverge now and then.
    """
    if any(record.failure is not None for record in records):
        return None
    scores = _scores(records, metric, on)
    value = float(scores.max() if how == "best" else scores.mean())
    return None if math.isnan(value) else value


def stopped(records: Sequence[Record]) -> int | None:
    """The epochs after which a scheduler stopped a trial; None when it ran whole. Its seeds stop together."""
    return max((record.stopped for record in records if record.stopped is not None), default=None)


def best_seed(records: Sequence[Record], *, metric: str, on: Literal["val", "test"]) -> int:
    """Place of the seed that a best-of-S report shows: best on what the protocol selects on; ties: the first."""
    return int(_scores(records, metric, on).argmax())


def mean(values: Array) -> Array:
    """Mean over seeds, `[S, ...] -> [...]`."""
    result: Array = values.mean(axis=0)
    return result


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Mean over seeds; None where one of them has none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def interval(values: Array) -> Interval | None:
    """95% interval of the mean of `values [S]`, Student's t with S - 1 degrees; None for one seed or an empty split."""
    count = len(values)
    if count < 2 or np.isnan(values).any():
        return None
    center, spread = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count)
    half = float(special.stdtrit(count - 1, 0.975)) * spread
    return Interval(center - half, center + half)


def paired(a: Array, b: Array) -> MeanDifference:
    """Compare `a [S]` with `b [S]` seed by seed (a fixed baseline is given as one value repeated).

    The p value is None for fewer than two seeds, and where all differences are equal, for then their noise is hidden
    by rounding to whole images and t has no finite value; it is 1 when they are all zero.
    """
    difference = a - b
    center = float(difference.mean())
    if len(difference) < 2 or np.isnan(difference).any():
        return MeanDifference(center, None, None)
    if np.ptp(difference) < ROUNDING:
        p_value = _without_spread(center)
    else:
        statistic = center / (float(difference.std(ddof=1)) / math.sqrt(len(difference)))
        p_value = 2 * float(special.stdtr(len(difference) - 1, -abs(statistic)))
    return MeanDifference(center, interval(difference), p_value)


def welch(a: Array, b: Array) -> MeanDifference:
    """Compare the means of `a [S]` and `b [R]`, runs that share neither seeds nor spread, by Welch's t test.

    None for interval and p where either has fewer than two runs or an empty split; p is that of `paired` where both
    groups have no spread at all.
    """
    center = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2 or math.isnan(center):
        return MeanDifference(center, None, None)
    parts = [float(values.var(ddof=1)) / len(values) for values in (a, b)]
    spread = math.sqrt(sum(parts))
    if spread < ROUNDING:
        return MeanDifference(center, Interval(center, center), _without_spread(center))
    degrees = sum(parts) ** 2 / sum(part**2 / (len(own) - 1) for part, own in zip(parts, (a, b), strict=True))
    half = float(special.stdtrit(degrees, 0.975)) * spread
    p_value = 2 * float(special.stdtr(degrees, -abs(center) / spread))
    return MeanDifference(center, Interval(center - half, center + half), p_value)


def _without_spread(center: float) -> float | None:
    return 1.0 if abs(center) < ROUNDING else None


def surely_above(a: Array, b: Array, comparisons: int = 1) -> bool:
    """Whether `a [S]` lies above `b [S]` by more than `LEVEL`, and over seeds by no chance (95%, Bonferroni)."""
    pair = paired(a, b)
    if pair.p_value is None:
        return pair.mean > ONE_SEED_LEVEL
    return pair.mean > LEVEL and pair.p_value < 0.05 / comparisons


@dataclass(frozen=True)
class ExtendedTraining:
    """What became of a setting that was trained longer, at its last epoch, on what is selected on; paired by seed.

    Attributes:
        mean, ci95: of its accuracy.
        change: minus the setting itself at its own last epoch: the best of many epochs lies higher than a level curve.
        ends: `falls` below the setting, which so stood on a transient; `gains` further, so it was not trained to its
            end; `level`, where the interval of the change lies within `MARGIN`; or `unclear`: the seeds cannot tell.
        over_start: minus the stage-1 head; None where that was not evaluated.
        beside_start: on which side of the stage-1 head it ends, by the same measure.
    """

    mean: float
    ci95: Interval | None
    change: MeanDifference
    ends: Literal["falls", "level", "gains", "unclear"]
    over_start: MeanDifference | None
    beside_start: Literal["below", "level", "above", "unclear"] | None


def extended_training(
    extended: Sequence[Record],
    shorter: Sequence[Record],
    start: Sequence[Record] | None,
    *,
    metric: str,
    on: Literal["val", "test"],
) -> ExtendedTraining | None:
    """Compare a longer run with the setting it repeats, and with the stage-1 head; None where one of them failed."""
    if any(record.failure is not None for record in (*extended, *shorter)):
        return None
    column = SPLITS.index(metric.removeprefix("acc_"))
    after, before = (ended(records, on)[:, column] for records in (extended, shorter))
    over_start: MeanDifference | None = None
    beside: Literal["below", "level", "above", "unclear"] | None = None
    if start is not None and all(record.failure is None for record in start):
        head = np.broadcast_to(_scores(start, metric, on), after.shape)
        over_start = paired(after, head)
        beside = "below" if surely_above(head, after) else "above" if surely_above(after, head) else _same(over_start)
    change = paired(after, before)
    return ExtendedTraining(
        mean=float(after.mean()),
        ci95=interval(after),
        change=change,
        ends="falls" if surely_above(before, after) else "gains" if surely_above(after, before) else _same(change),
        over_start=over_start,
        beside_start=beside,
    )


def _same(gap: MeanDifference) -> Literal["level", "unclear"]:
    """What is no sure difference: none is shown only where the interval is narrow, else nothing is."""
    known = gap.ci95 is not None and max(-gap.ci95.low, gap.ci95.high) <= MARGIN
    return "level" if known else "unclear"


def seeds_told(count: int) -> str:
    """`one seed`, or `5 seeds`."""
    return "one seed" if count == 1 else f"{count} seeds"


def finalists_told(count: int) -> str:
    """`one finalist`, or `3 finalists`."""
    return "one finalist" if count == 1 else f"{count} finalists"


def best_told(count: int) -> str:
    """Whom finalists are: `the best one`, or `the best 3`."""
    return f"the best {'one' if count == 1 else count}"


def chosen_over(how: Literal["mean", "best"], seeds: int) -> str:
    """What of its seeds a trial is judged by: `mean of 5 seeds`, or `one seed`."""
    return f"{how} of {seeds} seeds" if seeds > 1 else seeds_told(seeds)


def expected_best(count: int) -> float:
    """Mean of the largest of `count` standard normal numbers: 0 for one, 1.163 for five."""
    nodes = np.linspace(-9.0, 9.0, 6001)  # far finer than needed; the integrand is smooth and has died at both ends
    density = np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(nodes * count * density * special.ndtr(nodes) ** (count - 1), nodes))


def best_of_bias(values: Array) -> float | None:
    """By how much the best of `values [S]` lies above their mean where seeds are normal and the best is taken by them.

    Their standard deviation is estimated from the same seeds and freed of its own bias (c4), so that the bias stated
    is right on average for any S. None for one seed or an empty split.
    """
    count = len(values)
    if count < 2 or np.isnan(values).any():
        return None
    c4 = math.sqrt(2 / (count - 1)) * math.exp(special.gammaln(count / 2) - special.gammaln((count - 1) / 2))
    return expected_best(count) * float(values.std(ddof=1)) / c4


def _scores(records: Sequence[Record], metric: str, on: Literal["val", "test"]) -> Array:
    return reported(records, on)[:, SPLITS.index(metric.removeprefix("acc_"))]
