"""Optuna as an ask/tell object: one in-memory study behind `Search`. Optuna is imported in this folder only.

Our ledger, not Optuna's storage, is what survives a crash: a resumed sweep replays its asks and tells here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from sweeps.search.base import Choice, Dimension, IntRange, LogUniform

__all__ = ["OptunaSearch", "distribution"]


class OptunaSearch:
    """A `Search` that asks `sampler`. Paths are handed to Optuna in sorted order, so a file's order has no effect."""

    def __init__(self, sampler: BaseSampler, space: Mapping[str, Dimension]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {path: distribution(space[path]) for path in sorted(space)}
        self._trials: list[Trial] = []

    def ask(self, number: int) -> dict[str, Any] | None:
        """See `Search.ask`; never None."""
        assert number == len(self._trials), f"trials are asked in order: {len(self._trials)} is next, not {number}"
        trial = self._study.ask(fixed_distributions=self._distributions)
        self._trials.append(trial)
        return {path: trial.params[path] for path in self._distributions}

    def tell(self, number: int, value: float | None, stopped: int | None = None) -> None:
        """See `Search.tell`.

        A trial stopped early is a pruned one to Optuna: TPE ranks it below those that ran whole, and higher the longer
        it ran.
        """
        trial = self._trials[number]
        if value is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        assert math.isfinite(value), f"trial {number}: a failed trial is told as None, not as {value}"
        if stopped is None:
            self._study.tell(trial, float(value))
        else:
            trial.report(float(value), step=stopped)
            self._study.tell(trial, state=TrialState.PRUNED)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna knows it."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if isinstance(dimension, IntRange):
        low, high = dimension.bounds
        return IntDistribution(low, high)
    return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
