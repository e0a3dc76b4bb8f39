"""Which trial wins: a trial with its recorded runs, its objective, the ranking, and extended training.

Columns are the scores of a sweep: accuracy over all classes and by split, then its metrics. Accuracies are fractions of
1; an empty split, and an undefined metric, is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from lt_train.core.validation import named
from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.metrics import ACCURACIES, Score
from sweeps.analysis.statistics import Array, Comparison, Estimate, Trend, estimate, paired
from sweeps.config.trials import Phase, Trial
from sweeps.store.ledger import LedgerReader
from sweeps.store.records import Record

if TYPE_CHECKING:
    from sweeps.config.sections import SelectionSpec
    from sweeps.config.spec import SweepSpec

__all__ = [
    "ExtendedTraining",
    "TrialRuns",
    "best_seed",
    "column_of",
    "extended_training",
    "mean_of_all",
    "ranking",
    "reported",
    "trial_runs",
]

EvaluationSet = Literal["val", "test"]

TREND_OF = {
    "better": Trend.IMPROVING,
    "tied": Trend.STABLE,
    "worse": Trend.DECLINING,
    "undecided": Trend.INCONCLUSIVE,
}


@dataclass(frozen=True)
class TrialRuns:
    """A trial with the records of all its seeds, in seed order.

    Attributes:
        objective: mean or best over its seeds, as the protocol says; None for a failed trial.
        ledger: has the arrays of its runs.
        scores: the columns of its scores, C of them.
        undefined: why it has no objective although no run failed; else empty.
    """

    trial: Trial
    records: tuple[Record, ...]
    objective: float | None
    ledger: LedgerReader = field(repr=False, compare=False)
    scores: tuple[Score, ...] = ACCURACIES
    undefined: str = ""

    @property
    def failure(self) -> str | None:
        """Why it failed: the reason of the first run that did, or that the selection metric is undefined for one."""
        return next((record.failure for record in self.records if record.failure is not None), self.undefined or None)

    @property
    def failed(self) -> bool:
        """Whether it has no objective, because a run failed or the selection metric is undefined for one."""
        return self.failure is not None

    @property
    def stopped(self) -> int | None:
        """Epochs after which the trial was stopped early; None if it ran to the end. Its seeds stop together."""
        return max((record.stopped for record in self.records if record.stopped is not None), default=None)

    @property
    def recipe(self) -> tuple[MethodSpec, TrainingSpec | None]:
        """Identifies a configuration: the method and, if it trains anything, the training."""
        return self.trial.method, self.trial.training if self.trial.method.trains else None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its runs."""
        return tuple(record.seed for record in self.records)

    @property
    def has_val(self) -> bool:
        """Whether it was evaluated on a validation set."""
        return self.records[0].val is not None

    @property
    def values(self) -> Array:
        """Scores on test `[S, C]` at the selected epoch. Not for a failed trial."""
        return reported(self.records)

    def curves(self, on: EvaluationSet) -> Array:
        """Scores after every epoch, `[S, E, C]`. Not for a failed trial.

        Raises:
            LongtailError: the file with the arrays of its runs is missing or altered; so for the methods below.
        """
        arrays = [self.ledger.arrays(record.key) for record in self.records]
        assert on == "test" or self.has_val, "there is no validation set"
        return np.stack([one.test if on == "test" else one.val for one in arrays])  # type: ignore[misc]

    def losses(self) -> Array:
        """Training loss of every epoch, `[S, E]`. Not for a failed trial."""
        return np.stack([self.ledger.arrays(record.key).loss for record in self.records])

    def ended(self, on: EvaluationSet = "test") -> Array:
        """Scores `[S, C]` at the last epoch, whichever epoch is selected. Not for a failed trial."""
        return self.curves(on)[:, -1]

    def by_class(self, name: Literal["class_accuracy", "loma", "regularised_std"]) -> Array:
        """Values of every class on test, `[S, K]`. Not for a failed trial."""
        arrays = [self.ledger.arrays(record.key) for record in self.records]
        return np.stack([getattr(one, name) for one in arrays])


def trial_runs(
    trial: Trial,
    records: Sequence[Record],
    chosen: SelectionSpec,
    ledger: LedgerReader,
    scores: tuple[Score, ...] = ACCURACIES,
) -> TrialRuns:
    """A trial with its records and its objective.

    A failed seed fails the trial, and so does one for which the selection metric is undefined. Leaving it out would
    reward configurations that sometimes diverge.
    """
    runs = TrialRuns(trial, tuple(records), None, ledger, scores)
    if runs.failed:
        return runs
    values = reported(records, chosen.on)[:, column_of(chosen.metric, scores)]
    if np.isnan(values).any():
        seeds = [record.seed for record, value in zip(records, values, strict=True) if np.isnan(value)]
        return replace(runs, undefined=f"{chosen.metric} on {chosen.on} is undefined for seed {named(seeds, 3)}")
    return replace(runs, objective=float(values.max() if chosen.objective == "best" else values.mean()))


def column_of(metric: str, scores: Sequence[Score]) -> int:
    """The column of a metric."""
    return [score.name for score in scores].index(metric)


def ranking(
    trials: Iterable[TrialRuns], spec: SweepSpec, phase: Phase, candidate: str | None = None
) -> list[TrialRuns]:
    """Trials of a phase that neither failed nor were stopped, best first; of one candidate or of all.

    Ties are broken by the order of candidates in the file, then by the trial number.
    """
    order = {one.name: position for position, one in enumerate(spec.candidates())}
    scored = [
        ((-one.objective, order.get(one.trial.candidate, 0), one.trial.number), one)
        for one in trials
        if one.trial.phase == phase
        and candidate in (None, one.trial.candidate)
        and one.objective is not None
        and one.stopped is None
    ]
    return [one for _, one in sorted(scored, key=lambda entry: entry[0])]


def reported(records: Sequence[Record], on: EvaluationSet = "test") -> Array:
    """Scores `[S, C]` of each seed's run at its selected epoch. Not for failed runs."""
    return np.array([record.val if on == "val" else record.test for record in records], dtype=np.float64)


def best_seed(records: Sequence[Record], *, column: int, on: EvaluationSet) -> int:
    """Index of the seed that a best-of-S report shows: the best by the selection metric, the first of equal ones."""
    return int(reported(records, on)[:, column].argmax())


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
    extended: TrialRuns, winner: TrialRuns, start: TrialRuns | None, *, metric: str, on: EvaluationSet
) -> ExtendedTraining | None:
    """Compare the extended run with the winner, and with the stage-1 head `start`; None if one of the runs failed."""
    if extended.failed or winner.failed:
        return None
    column = column_of(metric, winner.scores)
    after, before = (one.ended(on)[:, column] for one in (extended, winner))
    accuracy, change = estimate(after), paired(after, before, equivalence=True)
    if accuracy is None or change is None:
        return None
    over_start = None
    if start is not None and not start.failed:
        over_start = paired(
            after, np.broadcast_to(reported(start.records, on)[:, column], after.shape), equivalence=True
        )
    return ExtendedTraining(accuracy, change, over_start)
