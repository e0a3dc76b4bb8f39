"""`grid`: every combination once, in the order of the file; the last dimension changes fastest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from sweeps.search.base import AlgorithmSpec, Choice, Dimension, IntRange, Search

__all__ = ["Grid"]


class Grid(AlgorithmSpec):
    """The product of `choice` and `int` dimensions."""

    kind: Literal["grid"] = "grid"

    def start(self, space: Mapping[str, Dimension], seed: int) -> Search:
        """See `AlgorithmSpec.start`; nothing here is random."""
        return _GridSearch({path: _values(dimension) for path, dimension in space.items()})

    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """The number of points."""
        return math.prod(len(_values(dimension)) for dimension in space.values())

    def check(self, space: Mapping[str, Dimension]) -> Iterator[tuple[str, str]]:
        """Ranges of decimals have no finite number of points."""
        for path, dimension in space.items():
            if not isinstance(dimension, Choice | IntRange):
                yield path, f"a grid needs {{choice: [...]}} or {{int: [low, high]}}, got {{{dimension.key}: ...}}"


class _GridSearch:
    def __init__(self, values: Mapping[str, list[Any] | range]) -> None:
        self._values = values

    def ask(self, number: int) -> dict[str, Any] | None:
        """Point `number`, read as a number whose digits are the dimensions; the product is never written out."""
        digits: dict[str, Any] = {}
        for path, values in reversed(list(self._values.items())):
            number, digit = divmod(number, len(values))
            digits[path] = values[digit]
        return {path: digits[path] for path in self._values} if number == 0 else None

    def tell(self, number: int, value: float | None, stopped: int | None = None) -> None:
        """Nothing is learnt."""


def _values(dimension: Dimension) -> list[Any] | range:
    if isinstance(dimension, Choice):
        return dimension.values
    assert isinstance(dimension, IntRange), "check() refuses other dimensions"
    low, high = dimension.bounds
    return range(int(low), int(high) + 1)
