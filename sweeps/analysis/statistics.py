"""One setting against another, and what its last epoch stands on: the judgements that a report makes. Pure.

A difference is paired by seed, or Welch's where two settings share none; what trains nothing has one run that stands
for every seed. Knows settings and `sweeps.analysis.selection`; knows no tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.estimate import Estimate
from sweeps.analysis.labels import told
from sweeps.analysis.load import TrialRuns
from sweeps.store.ledger import Record

__all__ = ["Difference", "Ending", "as_estimate", "difference", "ending", "estimate", "judged", "matched", "mean_curve"]


@dataclass(frozen=True)
class Difference:
    """`ours` minus `theirs` on test. `by_split` is by column of SPLITS, None for an empty split.

    Attributes:
        test: `paired` by the seeds that both have; `welch` where they share none and each has several; `none` where one
            run on either side says nothing of its noise.
        seeds: pairs that were compared; 0 where none were.
        p_values: of that test by column.
        p_value: of that test in the metric selected on.
    """

    by_split: tuple[Estimate | None, ...]
    test: Literal["paired", "welch", "none"]
    seeds: int
    p_values: tuple[float | None, ...]
    p_value: float | None
    verdict: Literal["better", "tied", "worse", "no spread", "one run"]

    @property
    def told(self) -> str:
        """The verdict, and by which test where it is not the paired one."""
        return told(self.verdict, self.test)

    def behind(self, column: int) -> bool:
        """Whether ours is worse; where no test can say, whether its mean is lower."""
        gap = self.by_split[column]
        return self.verdict == "worse" or (
            self.verdict in ("one run", "no spread") and gap is not None and gap.mean < -selection.ROUNDING
        )


def difference(ours: TrialRuns, theirs: TrialRuns, column: int, *, pair: bool = True) -> Difference:
    """Compare two sound settings, judged in `column`, the split that the protocol selects on.

    Paired by seed; by Welch's test where they share no seeds, or with `pair` false, where a seed's luck is not the same
    for both.
    """
    a, b, paired = matched(ours, theirs, pair=pair)
    test = selection.paired if paired else selection.welch
    gaps = [test(a[:, place], b[:, place]) for place in range(len(SPLITS))]
    judged_by = gaps[column]
    untested = judged_by.ci95 is None
    return Difference(
        by_split=tuple(map(as_estimate, gaps)),
        test="none" if untested else "paired" if paired else "welch",
        seeds=len(a) if paired else 0,
        p_values=tuple(gap.p_value for gap in gaps),
        p_value=judged_by.p_value,
        verdict=_judge(judged_by),
    )


def matched(
    ours: TrialRuns, theirs: TrialRuns, read: Callable[[TrialRuns], selection.Array] | None = None, *, pair: bool = True
) -> tuple[selection.Array, selection.Array, bool]:
    """Values of both by seed, and whether row stands beside row: of the seeds that both have, else all of each.

    What trains nothing has one run, which stands for every seed. `read` gives a setting's values `[S, ...]`, if not its
    test accuracies.
    """
    sides = []
    for setting in (ours, theirs):
        values = setting.values if read is None else read(setting)
        sides.append(dict(zip(setting.seeds, values, strict=True)))
    a, b = sides
    fixed = [len(own) == 1 and not one.trial.method.trains for own, one in ((a, ours), (b, theirs))]
    if all(fixed):
        return np.array(list(a.values())), np.array(list(b.values())), True
    if fixed[0]:
        a = dict.fromkeys(b, *a.values())
    elif fixed[1]:
        b = dict.fromkeys(a, *b.values())
    common = [seed for seed in a if seed in b] if pair else []
    if len(common) > 1 or (common and min(len(a), len(b)) == 1):
        return np.array([a[seed] for seed in common]), np.array([b[seed] for seed in common]), True
    return np.array(list(a.values())), np.array(list(b.values())), False


def _judge(gap: selection.MeanDifference) -> Literal["better", "tied", "worse", "no spread", "one run"]:
    if abs(gap.mean) < selection.ROUNDING:
        return "tied"
    if gap.ci95 is None:
        return "one run"
    if gap.ci95.low <= 0 <= gap.ci95.high:
        return "tied"
    if gap.p_value is None:
        return "no spread"
    return "better" if gap.mean > 0 else "worse"


def estimate(values: selection.Array) -> Estimate | None:
    """Mean over seeds with its interval, `[S] -> `; None for an empty split."""
    return _estimate(float(values.mean()), selection.interval(values))


def as_estimate(gap: selection.MeanDifference) -> Estimate | None:
    """A difference of means as a cell; None for an empty split."""
    return _estimate(gap.mean, gap.ci95)


def _estimate(mean: float, interval: selection.Interval | None) -> Estimate | None:
    ci95 = None if interval is None else (interval.low, interval.high)
    return None if math.isnan(mean) else Estimate.of(mean, ci95)


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
