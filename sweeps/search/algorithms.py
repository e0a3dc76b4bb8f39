"""The built-in search algorithms `tpe`, `random` and `grid`, and the importance of hyperparameters."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sweeps.search.base import ALGORITHMS, AlgorithmSpec, Choice, Dimension, IntRange, Tried

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = ["MAX_TRIALS", "MIN_TRIALS", "Grid", "RandomSearch", "TreeParzen", "importances"]


@ALGORITHMS.register
class TreeParzen(AlgorithmSpec):
    """Multivariate Tree-structured Parzen Estimator of Optuna (Bergstra et al., 2011; Falkner et al., 2018).

    Models the location of good trials, jointly over all dimensions. Trials that are still running count as poor
    ones, so that trials that run at the same time differ. Trials outside the searched space are ignored.
    """

    library: ClassVar[str] = "optuna"
    kind: Literal["tpe"] = "tpe"
    startup_trials: int = Field(
        default=10, ge=0, description="number of trials drawn at random before the model is used, >= 0"
    )

    def propose(
        self, space: Mapping[str, Dimension], seed: int, tried: Sequence[Tried], count: int
    ) -> list[dict[str, Any]]:
        """See `AlgorithmSpec.propose`."""
        from sweeps.search.optuna_studies import JointTPE, ask, trial_seed

        def sampler(number: int) -> BaseSampler:
            # Options are explicit because Optuna changes its defaults between major versions; deprecated options are
            # left out.
            return JointTPE(
                space,
                n_startup_trials=self.startup_trials,
                n_ei_candidates=24,
                seed=trial_seed(seed, number),
                group=False,
                constant_liar=True,
            )

        return ask(space, tried, range(len(tried), len(tried) + count), sampler)


@ALGORITHMS.register
class RandomSearch(AlgorithmSpec):
    """Independent random draws, regardless of results. Suited to sensitivity plots and as a baseline."""

    library: ClassVar[str] = "optuna"
    kind: Literal["random"] = "random"

    def propose(
        self, space: Mapping[str, Dimension], seed: int, tried: Sequence[Tried], count: int
    ) -> list[dict[str, Any]]:
        """See `AlgorithmSpec.propose`; only the number of `tried` trials has an effect."""
        from optuna.samplers import RandomSampler

        from sweeps.search.optuna_studies import ask, trial_seed

        numbers = range(len(tried), len(tried) + count)
        return ask(space, (), numbers, lambda number: RandomSampler(seed=trial_seed(seed, number)))


@ALGORITHMS.register
class Grid(AlgorithmSpec):
    """Every combination of `choice` and `int` dimensions once.

    Combinations follow the order of the file; the last dimension changes fastest.
    """

    kind: Literal["grid"] = "grid"

    def propose(
        self, space: Mapping[str, Dimension], seed: int, tried: Sequence[Tried], count: int
    ) -> list[dict[str, Any]]:
        """See `AlgorithmSpec.propose`; `seed` has no effect, and of `tried` only the number of trials has one."""
        values = {path: _values(dimension) for path, dimension in space.items()}
        first = len(tried)
        return [_combination(values, number) for number in range(first, min(first + count, self.size(space)))]

    def size(self, space: Mapping[str, Dimension]) -> int:
        """The number of combinations."""
        return math.prod(len(_values(dimension)) for dimension in space.values())

    def check(self, space: Mapping[str, Dimension]) -> Iterator[tuple[str, str]]:
        """Continuous ranges have no finite number of values."""
        for path, dimension in space.items():
            if not isinstance(dimension, Choice | IntRange):
                yield path, f"a grid needs {{choice: [...]}} or {{int: [low, high]}}, got {{{dimension.key}: ...}}"


def _combination(values: Mapping[str, list[Any] | range], number: int) -> dict[str, Any]:
    """Combination `number`: its digits in a mixed radix system, so that the product is never built in memory."""
    digits: dict[str, Any] = {}
    for path, allowed in reversed(list(values.items())):
        number, digit = divmod(number, len(allowed))
        digits[path] = allowed[digit]
    return {path: digits[path] for path in values}


def _values(dimension: Dimension) -> list[Any] | range:
    if isinstance(dimension, Choice):
        return dimension.values
    assert isinstance(dimension, IntRange), "check() refuses other dimensions"
    low, high = dimension.bounds
    return range(int(low), int(high) + 1)


MIN_TRIALS = 10
"""The smallest number of trials for which `importances` fits a model."""

MAX_TRIALS = 1000
"""The largest number of trials to which `importances` fits a model by default."""


def importances(
    space: Mapping[str, Dimension], trials: Sequence[tuple[Mapping[str, Any], float]], most: int = MAX_TRIALS
) -> dict[str, float]:
    """The share of the objective's variance that each dimension explains, by fANOVA (Hutter et al., 2014).

    Its time grows faster than linearly with the number of trials, so it is computed on a random sample of `most` if
    there are more.

    Args:
        space: the searched dimensions.
        trials: `(values by dotted path, objective)` of every trial.
        most: the largest number of trials to which a model is fitted.

    Returns:
        Shares by dotted path, largest first; they sum to 1. Empty if there are fewer than `MIN_TRIALS` trials, no
        dimensions, or only equal objectives.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    from sweeps.search.optuna_studies import study_of

    if not space or len(trials) < MIN_TRIALS:
        return {}
    if len(trials) > most:
        trials = random.Random(0).sample(trials, most)
    study = study_of(space, [Tried(params, "finished", value) for params, value in trials])
    values = {trial.value for trial in study.get_trials(deepcopy=False)}
    if len(values) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
