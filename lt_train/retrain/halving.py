"""Successive halving within a pack: which runs stop at which epoch, the same for both engines.

The decision depends only on recorded accuracies. Shapes: E epochs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from lt_train.retrain.base import Array, EpochSelection, Halving, Run, RunResult, score_column

__all__ = ["Trials"]


class Trials:
    """The trials of a pack: `trials` lists the indices of runs that differ only in the seed, in pack order."""

    def __init__(self, runs: Sequence[Run], rule: EpochSelection, halving: Halving) -> None:
        self.rule, self.halving = rule, halving
        self.epochs = [run.training.epochs if run.method.trains else 1 for run in runs]
        by_trial: dict[object, list[int]] = {}
        for index, run in enumerate(runs):
            by_trial.setdefault((run.method, run.training), []).append(index)
        self.trials = list(by_trial.values())

    def survivors(self, active: Collection[int], finished: int, curves: Sequence[Array | None]) -> set[int]:
        """The indices that continue after `finished` epochs, among those `active`; all of them if that is not a rung.

        Args:
            active: runs that are not stopped yet; failed runs may be among them.
            finished: number of finished epochs.
            curves: for every run the accuracies that the rule selects by, `[E, 4]`; shorter for a failed run.
        """
        running = [trial for trial in self.trials if trial[0] in active and self.epochs[trial[0]] > finished]
        if finished not in self.halving.rungs or not running:
            return set(active)
        # Sorting is stable, so ties go to the trial that comes first.
        ranked = sorted(running, key=lambda trial: -self._score(trial, finished, curves))
        dropped = ranked[math.ceil(len(running) / self.halving.factor) :]
        return set(active) - {index for trial in dropped for index in trial}

    def stops(self, complete: Sequence[RunResult]) -> list[int | None]:
        """The number of epochs after which each of these completely trained runs is stopped; None: it is not."""
        curves = [result.test_accuracy if self.rule.on == "test" else result.val_accuracy for result in complete]
        active = set(range(len(complete)))
        stops: dict[int, int | None] = dict.fromkeys(active)
        for rung in self.halving.rungs:
            left = self.survivors(active, rung, curves)
            stops |= dict.fromkeys(active - left, rung)
            active = left
        return list(stops.values())

    def _score(self, trial: Sequence[int], finished: int, curves: Sequence[Array | None]) -> float:
        """Mean over the trial's seeds of the last or best accuracy so far; -inf if a run failed."""
        column = score_column(self.rule)
        scores: list[float] = []
        for index in trial:
            curve = curves[index]
            if curve is None or len(curve) < finished:
                return -math.inf
            accuracies = curve[:finished, column]
            scores.append(float(accuracies.max() if self.rule.epoch == "best" else accuracies[-1]))
        return float(np.mean(scores))
