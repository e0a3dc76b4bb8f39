"""The built-in search algorithms `tpe`, `random` and `grid`, and the importance of hyperparameters.

Optuna is behind the `Search` interface: each search is one in-memory study. It is not stored: a resumed sweep replays
its calls from the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from sweeps.search.base import AlgorithmSpec, Choice, Dimension, IntRange, LogUniform, Search

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

__all__ = ["MIN_TRIALS", "Grid", "OptunaSearch", "RandomSearch", "TreeParzen", "importances"]


class TreeParzen(AlgorithmSpec):
    """Multivariate Tree-structured Parzen Estimator of Optuna (Bergstra et al., 2011; Falkner et al., 2018).

    Models the location of good trials, jointly over all dimensions. Trials that are still running count as poor
    ones, so that trials that run at the same time differ.
    """

    kind: Literal["tpe"] = "tpe"
    startup_trials: int = Field(
        default=10, ge=0, description="number of trials drawn at random before the model is used, >= 0"
    )

    def start(self, space: Mapping[str, Dimension], seed: int) -> Search:
        """See `AlgorithmSpec.start`."""
        from optuna.samplers import TPESampler

        # Options are explicit because Optuna changes its defaults between major versions; deprecated options are left
        # out.
        sampler = TPESampler(
            n_startup_trials=self.startup_trials,
            n_ei_candidates=24,
            seed=seed,
            multivariate=True,
            group=False,
            constant_liar=True,
        )
        return OptunaSearch(sampler, space)


class RandomSearch(AlgorithmSpec):
    """Independent random draws, regardless of results. Suited to sensitivity plots and as a baseline."""

    kind: Literal["random"] = "random"

    def start(self, space: Mapping[str, Dimension], seed: int) -> Search:
        """See `AlgorithmSpec.start`."""
        from optuna.samplers import RandomSampler

        return OptunaSearch(RandomSampler(seed=seed), space)


class Grid(AlgorithmSpec):
    """Every combination of `choice` and `int` dimensions once.

    Combinations follow the order of the file; the last dimension changes fastest.
    """

    kind: Literal["grid"] = "grid"

    def start(self, space: Mapping[str, Dimension], seed: int) -> Search:
        """See `AlgorithmSpec.start`; `seed` has no effect."""
        return _GridSearch({path: _values(dimension) for path, dimension in space.items()})

    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """The number of combinations."""
        return math.prod(len(_values(dimension)) for dimension in space.values())

    def check(self, space: Mapping[str, Dimension]) -> Iterator[tuple[str, str]]:
        """Continuous ranges have no finite number of values."""
        for path, dimension in space.items():
            if not isinstance(dimension, Choice | IntRange):
                yield path, f"a grid needs {{choice: [...]}} or {{int: [low, high]}}, got {{{dimension.key}: ...}}"


class _GridSearch:
    def __init__(self, values: Mapping[str, list[Any] | range]) -> None:
        self._values = values

    def ask(self, number: int) -> dict[str, Any] | None:
        """Combination `number`: its digits in a mixed radix system, so that the product is never built in memory."""
        digits: dict[str, Any] = {}
        for path, values in reversed(list(self._values.items())):
            number, digit = divmod(number, len(values))
            digits[path] = values[digit]
        return {path: digits[path] for path in self._values} if number == 0 else None

    def tell(self, number: int, value: float | None, stopped: int | None = None) -> None:
        """Ignore the result."""


def _values(dimension: Dimension) -> list[Any] | range:
    if isinstance(dimension, Choice):
        return dimension.values
    assert isinstance(dimension, IntRange), "check() refuses other dimensions"
    low, high = dimension.bounds
    return range(int(low), int(high) + 1)


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
