"""Optuna behind the `Search` interface, and the importance of hyperparameters.

Each search is one in-memory Optuna study. It is not stored: a resumed sweep replays its calls from the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweeps.search.base import Choice, Dimension, IntRange, LogUniform

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

__all__ = ["MIN_TRIALS", "OptunaSearch", "importances"]

MIN_TRIALS = 10
"""The smallest number of trials for which `importances` fits a model."""


class OptunaSearch:
    """A `Search` that draws from `sampler`. Dimensions are sorted by path: the order of a file has no effect."""

    def __init__(self, sampler: BaseSampler, space: Mapping[str, Dimension]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {path: _distribution(space[path]) for path in sorted(space)}
        self._trials: list[Trial] = []

    def ask(self, number: int) -> dict[str, Any] | None:
        """See `Search.ask`; never None."""
        assert number == len(self._trials), (
            f"trials must be requested in order: expected {len(self._trials)}, got {number}"
        )
        trial = self._study.ask(fixed_distributions=self._distributions)
        self._trials.append(trial)
        return {path: trial.params[path] for path in self._distributions}

    def tell(self, number: int, value: float | None, stopped: int | None = None) -> None:
        """See `Search.tell`.

        A trial that was stopped early is reported as pruned: TPE ranks it below the trials that ran to the end, and
        higher the longer it ran.
        """
        from optuna.trial import TrialState

        trial = self._trials[number]
        if value is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        assert math.isfinite(value), f"trial {number}: a failed trial is reported as None, not as {value}"
        if stopped is None:
            self._study.tell(trial, float(value))
        else:
            trial.report(float(value), step=stopped)
            self._study.tell(trial, state=TrialState.PRUNED)


def importances(
    space: Mapping[str, Dimension], trials: Sequence[tuple[Mapping[str, Any], float]], seed: int = 0
) -> dict[str, float]:
    """The share of the objective's variance that each dimension explains, by fANOVA (Hutter et al., 2014).

    Args:
        space: the searched dimensions.
        trials: `(values by dotted path, objective)` of every trial.
        seed: of the random forest.

    Returns:
        Shares by dotted path, largest first; they sum to 1. Empty if there are fewer than `MIN_TRIALS` trials, no
        dimensions, or only equal objectives.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    values = [value for _, value in trials]
    if not space or len(trials) < MIN_TRIALS or max(values) - min(values) <= 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {path: _distribution(dimension) for path, dimension in space.items()}
    study = optuna.create_study(direction="maximize")
    study.add_trials([create_trial(params=dict(p), distributions=distributions, value=value) for p, value in trials])
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))


def _distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna's type."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if isinstance(dimension, IntRange):
        low, high = dimension.bounds
        return IntDistribution(low, high)
    return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
