"""Which trial wins: objectives, reported epochs and extended training. Pure functions over the records of runs.

Columns are those of `lt_train.metrics.SPLITS`; accuracies are fractions of 1; an empty split is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lt_train.metrics import SPLITS
from sweeps.analysis.statistics import Array, Comparison, Estimate, Trend, estimate, paired
from sweeps.store.ledger import Record

__all__ = [
    "ExtendedTraining",
    "accuracy_curves",
    "best_seed",
    "ended",
    "extended_training",
    "mean_of_all",
    "objective",
    "reported",
    "stopped",
]

EvaluationSet = Literal["val", "test"]

TREND_OF = {
    "better": Trend.IMPROVING,
    "tied": Trend.STABLE,
    "worse": Trend.DECLINING,
    "undecided": Trend.INCONCLUSIVE,
}


def reported(records: Sequence[Record], on: EvaluationSet = "test") -> Array:
    """Accuracies `[S, 4]` of each seed's run at its selected epoch."""
    rows = [(record.val if on == "val" else record.test) or [] for record in records]
    picked: list[Any] = [row[record.epoch] for row, record in zip(rows, records, strict=True)]
    return np.array(picked, dtype=np.float64).reshape(len(records), len(SPLITS))


def ended(records: Sequence[Record], on: EvaluationSet = "test") -> Array:
    """Accuracies `[S, 4]` of each seed's run at its last epoch, whichever epoch is selected."""
    rows: list[Any] = [((record.val if on == "val" else record.test) or [])[-1] for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), len(SPLITS))


def accuracy_curves(records: Sequence[Record], on: EvaluationSet, column: int) -> Array:
    """Accuracy after every epoch `[S, E]` in one split. The seeds of a trial have equally many epochs."""
    rows = [(record.val if on == "val" else record.test) or [] for record in records]
    return np.array([[epoch[column] for epoch in row] for row in rows], dtype=np.float64).reshape(len(rows), -1)


def objective(
    records: Sequence[Record], *, metric: str, on: EvaluationSet, how: Literal["mean", "best"]
) -> float | None:
    """Objective of a trial: mean or best over its seeds; None if one of its runs failed or the split is empty.

    A failed seed fails the trial. Leaving it out would reward configurations that sometimes diverge.
    """
    if any(record.failure is not None for record in records):
        return None
    scores = _scores(records, metric, on)
    value = float(scores.max() if how == "best" else scores.mean())
    return None if math.isnan(value) else value


def stopped(records: Sequence[Record]) -> int | None:
    """Epochs after which a trial was stopped early; None if it ran to the end. Its seeds stop together."""
    return max((record.stopped for record in records if record.stopped is not None), default=None)


def best_seed(records: Sequence[Record], *, metric: str, on: EvaluationSet) -> int:
    """Index of the seed that a best-of-S report shows: the best by the selection metric, the first of equal ones."""
    return int(_scores(records, metric, on).argmax())


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Mean over seeds; None if one of them has no value."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class ExtendedTraining:
    """The winner's configuration trained several times as long, at its last epoch, in the selection metric.

    Attributes:
        accuracy: mean over seeds.
        change: minus the winner at its own last epoch, paired by seed. Not minus its best epoch: the best of many
            epochs lies above a stable curve. The verdict is an equivalence test within one point.
        over_start: minus the stage-1 head, by the same test; None where that was not evaluated.
    """

    accuracy: Estimate
    change: Comparison
    over_start: Comparison | None

    @property
    def trend(self) -> Trend:
        """Trend of the accuracy with more training. The winner has not converged if it is improving or declining."""
        return TREND_OF[self.change.verdict]


def extended_training(
    extended: Sequence[Record],
    winner: Sequence[Record],
    start: Sequence[Record] | None,
    *,
    metric: str,
    on: EvaluationSet,
) -> ExtendedTraining | None:
    """Compare the extended run with the winner, and with the stage-1 head `start`; None if one of the runs failed."""
    if any(record.failure is not None for record in (*extended, *winner)):
        return None
    column = SPLITS.index(metric.removeprefix("acc_"))
    after, before = (ended(records, on)[:, column] for records in (extended, winner))
    accuracy, change = estimate(after), paired(after, before, equivalence=True)
    if accuracy is None or change is None:
        return None
    over_start = None
    if start is not None and all(record.failure is None for record in start):
        over_start = paired(after, np.broadcast_to(_scores(start, metric, on), after.shape), equivalence=True)
    return ExtendedTraining(accuracy, change, over_start)


def _scores(records: Sequence[Record], metric: str, on: EvaluationSet) -> Array:
    return reported(records, on)[:, SPLITS.index(metric.removeprefix("acc_"))]
