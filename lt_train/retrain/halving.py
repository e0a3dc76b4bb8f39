"""Which runs successive halving stops, and when: the rule of `retrain.base.Halving`, the same for both engines.

Works on accuracies that are there already; knows nothing of heads or devices. Shapes: E epochs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from lt_train.retrain.base import EpochSelection, Halving, Run, RunResult, score_column

__all__ = ["Trials"]


class Trials:
    """The trials of a pack: places of the runs that differ in nothing but the seed, in the order of the pack."""

    def __init__(self, runs: Sequence[Run], rule: EpochSelection, halving: Halving) -> None:
        self.rule, self.halving = rule, halving
        self.epochs = [run.training.epochs if run.method.trains else 1 for run in runs]
        by_trial: dict[object, list[int]] = {}
        for place, run in enumerate(runs):
            by_trial.setdefault((run.method, run.training), []).append(place)
        self.places = list(by_trial.values())

    def survivors(
        self, going: Collection[int], finished: int, curves: Sequence[NDArray[np.float32] | None]
    ) -> set[int]:
        """The places that go on after `finished` epochs, among those `going`; all of them where that is no rung.

        Args:
            going: places not stopped yet; failed runs may be among them.
            finished: epochs.
            curves: for every place the accuracies judged by so far, `[E, 4]`; shorter for a run that failed.
        """
        running = [trial for trial in self.places if trial[0] in going and self.epochs[trial[0]] > finished]
        if finished not in self.halving.rungs or not running:
            return set(going)
        # Sorting is stable, so ties go to the trial that comes first.
        ranked = sorted(running, key=lambda trial: -self._score(trial, finished, curves))
        out = ranked[math.ceil(len(running) / self.halving.factor) :]
        return set(going) - {place for trial in out for place in trial}

    def lengths(self, whole: Sequence[RunResult]) -> list[int | None]:
        """The epochs after which each of these runs, given as trained to its end, is stopped; None for most."""
        curves = [result.test_accuracy if self.rule.on == "test" else result.val_accuracy for result in whole]
        going = set(range(len(whole)))
        stopped: dict[int, int | None] = dict.fromkeys(going)
        for rung in self.halving.rungs:
            left = self.survivors(going, rung, curves)
            stopped |= dict.fromkeys(going - left, rung)
            going = left
        return list(stopped.values())

    def _score(self, trial: Sequence[int], finished: int, curves: Sequence[NDArray[np.float32] | None]) -> float:
        column = score_column(self.rule)
        scores: list[float] = []
        for place in trial:
            curve = curves[place]
            if curve is None or len(curve) < finished:
                return -math.inf
            seen = curve[:finished, column]
            scores.append(float(seen.max() if self.rule.epoch == "best" else seen[-1]))
        return float(np.mean(scores))
