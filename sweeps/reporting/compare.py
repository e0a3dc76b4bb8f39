"""One setting against another, and what its last epoch stands on: the judgements that a report makes. Pure.

A difference is paired by seed; what trains nothing has one run that stands for every seed. Knows settings and
`sweeps.selection`; knows no tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lt_train.metrics import SPLITS
from sweeps import selection
from sweeps.ledger import Record
from sweeps.reporting.content import Estimate
from sweeps.reporting.reading import Setting

__all__ = ["Difference", "Ending", "as_estimate", "difference", "ending", "estimate", "judged", "mean_curve"]


@dataclass(frozen=True)
class Difference:
    """`ours` minus `theirs` on test. `by_split` is by column of SPLITS, None for an empty split.

    Attributes:
        seeds: pairs that were compared; 0 where the two share no seed, and only the means stand.
        p_value: of the paired t test in the metric selected on; None for fewer than two pairs.
    """

    by_split: tuple[Estimate | None, ...]
    seeds: int
    p_value: float | None
    verdict: Literal["better", "tied", "worse", "one seed", "other seeds"]

    def behind(self, column: int) -> bool:
        """Whether ours is worse; where no test can say, whether its mean is lower."""
        gap = self.by_split[column]
        untested = self.verdict in ("one seed", "other seeds")
        return self.verdict == "worse" or (untested and gap is not None and gap.mean < -selection.ROUNDING)


def difference(ours: Setting, theirs: Setting, column: int) -> Difference:
    """Compare two sound settings seed by seed; judged in `column`, the split that the protocol selects on."""
    a, b = dict(zip(ours.seeds, ours.values, strict=True)), dict(zip(theirs.seeds, theirs.values, strict=True))
    for own, other in ((a, b), (b, a)):
        if len(own) == 1 and not (ours if own is a else theirs).trial.method.trains:
            (one,) = own.values()
            own |= dict.fromkeys(other, one)
    common = [seed for seed in a if seed in b]
    if not common:
        gap = ours.values.mean(axis=0) - theirs.values.mean(axis=0)
        return Difference(tuple(_plain(value) for value in gap), 0, None, "other seeds")
    pairs = [
        selection.paired(np.array([a[seed][place] for seed in common]), np.array([b[seed][place] for seed in common]))
        for place in range(len(SPLITS))
    ]
    return Difference(tuple(map(as_estimate, pairs)), len(common), pairs[column].p_value, _judge(pairs[column]))


def _judge(pair: selection.PairedDifference) -> Literal["better", "tied", "worse", "one seed"]:
    if pair.ci95 is None:
        return "tied" if pair.mean == 0 else "one seed"
    if pair.ci95.low <= 0 <= pair.ci95.high or abs(pair.mean) < selection.ROUNDING:
        return "tied"
    return "better" if pair.mean > 0 else "worse"


def estimate(values: selection.Array) -> Estimate | None:
    """Mean over seeds with its interval, `[S] -> `; None for an empty split."""
    mean = float(values.mean())
    interval = selection.interval(values)
    if math.isnan(mean):
        return None
    return Estimate(mean) if interval is None else Estimate(mean, interval.low, interval.high)


def as_estimate(pair: selection.PairedDifference) -> Estimate | None:
    """A difference over seeds as a cell; None for an empty split."""
    if math.isnan(pair.mean):
        return None
    return Estimate(pair.mean) if pair.ci95 is None else Estimate(pair.mean, pair.ci95.low, pair.ci95.high)


def _plain(value: float) -> Estimate | None:
    return None if math.isnan(value) else Estimate(float(value))


def judged(records: Sequence[Record], on: Literal["val", "test"], column: int) -> selection.Array:
    """Accuracy after every epoch `[S, E]` in one split; seeds that share a fate have as many epochs."""
    rows = [(record.val if on == "val" else record.test) or [] for record in records]
    return np.array([[epoch[column] for epoch in row] for row in rows], dtype=np.float64).reshape(len(rows), -1)


def mean_curve(records: Sequence[Record], on: Literal["val", "test"], column: int) -> list[float | None]:
    """The mean of `judged` over seeds; None where the split is empty."""
    return [None if math.isnan(value) else float(value) for value in judged(records, on, column).mean(axis=0)]


@dataclass(frozen=True)
class Ending:
    """How an accuracy curve ends.

    Attributes:
        shape: `rising` still, `falling` from a peak on the way, `level`, or `short` where there are too few epochs.
        peak, peak_value: epoch (from 1; ties: the later) and mean of the highest point.
        last_value: mean after the last epoch.
    """

    shape: Literal["rising", "falling", "level", "short"]
    epochs: int
    peak: int
    peak_value: float
    last_value: float


def ending(curves: selection.Array) -> Ending | None:
    """Whether the last epoch of `curves [S, E]` lies on a slope; None where nothing was seen.

    Falling: the last tenth of the epochs lies below the highest tenth before it by more than a tenth of a point, and
    over seeds that is no chance: 95% for all tenths together (Bonferroni), as the highest of many lies high by luck.
    Rising: the last tenth lies above the fifth before it, by the same measure for that one comparison.
    """
    if curves.size == 0 or np.isnan(curves).any():
        return None
    epochs = curves.shape[1]
    mean = curves.mean(axis=0)
    peak = epochs - 1 - int(mean[::-1].argmax())
    about = (epochs, peak + 1, float(mean[peak]), float(mean[-1]))
    if epochs < 4:
        return Ending("short", *about)
    tenth = max(1, round(epochs / 10))
    last, *earlier = (curves[:, max(0, end - tenth) : end].mean(axis=1) for end in range(epochs, 0, -tenth))
    highest = max(earlier, key=np.mean)
    if mean[peak] - mean[-1] > selection.LEVEL and selection.surely_above(highest, last, comparisons=len(earlier)):
        return Ending("falling", *about)
    if selection.surely_above(last, curves[:, -3 * tenth : -tenth].mean(axis=1)):
        return Ending("rising", *about)
    return Ending("level", *about)
