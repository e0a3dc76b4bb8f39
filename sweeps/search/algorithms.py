"""The built-in search algorithms: `tpe`, `random` and `grid`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from sweeps.search.base import AlgorithmSpec, Choice, Dimension, IntRange, Search

__all__ = ["Grid", "RandomSearch", "TreeParzen"]


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

        from sweeps.search.optuna_study import OptunaSearch

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

        from sweeps.search.optuna_study import OptunaSearch

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
