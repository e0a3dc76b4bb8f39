"""What a search is: dimensions as a file writes them, and samplers as ask/tell objects.

A sampler kind is one file in this folder with one `AlgorithmSpec` subclass. It decides which trials are tried and knows
nothing else: no ledger, no backend, no methods. The same seed and the same sequence of asks and tells give the same
trials in any process; resuming a sweep replays that sequence, so this is a contract and not a nicety.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from lt_train.core.registry import KindSpec, Registry, Spec

__all__ = [
    "ALGORITHMS",
    "AlgorithmSpec",
    "Choice",
    "Dimension",
    "IntRange",
    "LogUniform",
    "Range",
    "Search",
    "Space",
    "Uniform",
]

Scalar = bool | int | float | str | None


class _Dimension(Spec):
    """One searched hyperparameter, written as a mapping with a single key."""

    model_config = ConfigDict(serialize_by_alias=True)

    key: ClassVar[str]

    @abstractmethod
    def probes(self) -> Iterator[tuple[int, Scalar]]:
        """The values that must be valid for all others to be: `(index in the list, value)`."""


class Range(_Dimension):
    """Base of dimensions with two ends, both included. `number` is the type of field they fit."""

    number: ClassVar[type]

    bounds: Sequence[float]

    @property
    def low(self) -> float:
        """The lower end."""
        return self.bounds[0]

    @property
    def high(self) -> float:
        """The upper end."""
        return self.bounds[1]

    def probes(self) -> Iterator[tuple[int, Scalar]]:
        """Both ends: fields are bounded by intervals, so what lies between is valid too."""
        yield from enumerate(self.bounds)


def _ordered(bounds: list[float]) -> list[float]:
    low, high = bounds
    if low >= high:
        raise ValueError(f"low must be below high, got {bounds}")
    return bounds


def _positive(bounds: list[float]) -> list[float]:
    if bounds[0] <= 0:
        raise ValueError(f"low must be above 0 on a logarithmic scale, got {bounds}")
    return bounds


def _distinct(values: list[Any]) -> list[Any]:
    for index, value in enumerate(values):
        if isinstance(value, list | dict):
            raise ValueError(f"choices must be numbers, text, true, false or null, got {value}")
        if value in values[:index]:
            raise ValueError(f"choices must differ, got {value!r} twice")
    return values


_TwoEnds = Field(min_length=2, max_length=2)
_Ordered = AfterValidator(_ordered)


class Uniform(Range):
    """Any number between low and high, evenly."""

    key: ClassVar[str] = "uniform"
    number: ClassVar[type] = float

    bounds: Annotated[list[float], _TwoEnds, _Ordered] = Field(
        alias="uniform", description="[low, high], low < high: any number between, evenly"
    )


class LogUniform(Range):
    """Any number between low and high, evenly over decades."""

    key: ClassVar[str] = "loguniform"
    number: ClassVar[type] = float

    bounds: Annotated[list[float], _TwoEnds, _Ordered, AfterValidator(_positive)] = Field(
        alias="loguniform", description="[low, high], 0 < low < high: any number between, evenly over decades"
    )


class IntRange(Range):
    """Any whole number from low to high, both included, evenly."""

    key: ClassVar[str] = "int"
    number: ClassVar[type] = int

    bounds: Annotated[list[int], _TwoEnds, _Ordered] = Field(
        alias="int", description="[low, high], low < high: any whole number from low to high, both included"
    )


class Choice(_Dimension):
    """One of the listed values, in no order."""

    key: ClassVar[str] = "choice"

    values: Annotated[list[Any], Field(min_length=1), AfterValidator(_distinct)] = Field(
        alias="choice", description="the values to choose from, at least one, all different"
    )

    def probes(self) -> Iterator[tuple[int, Scalar]]:
        """Every value."""
        yield from enumerate(self.values)


def _key_of(document: Any) -> str | None:
    """The one key of a dimension as written, which says what it is."""
    if isinstance(document, _Dimension):
        return document.key
    return str(next(iter(document))) if isinstance(document, dict) and len(document) == 1 else None


Dimension = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[IntRange, Tag("int")]
    | Annotated[Choice, Tag("choice")],
    Discriminator(_key_of),
]

Space = dict[str, Dimension]
"""Dimensions by dotted path (`method.lr`), in the file's order."""


class Search(Protocol):
    """One running search. Trials are numbered 0, 1, 2, ... and asked in that order; tells may lag behind."""

    def ask(self, number: int) -> dict[str, Any] | None:
        """The values of trial `number` by dotted path, or None when there are no more."""

    def tell(self, number: int, value: float | None, stopped: int | None = None) -> None:
        """The finite objective of an asked trial, larger is better; None when it failed. Once a trial.

        `stopped` is None, or the epochs after which a scheduler stopped the trial; the value is then of that epoch.
        """


class AlgorithmSpec(KindSpec):
    """Base of every sampler kind."""

    @abstractmethod
    def start(self, space: Mapping[str, Dimension], seed: int) -> Search:
        """A new search over `space`; randomness comes from `seed` alone."""

    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """How many trials there are in all; None when there is no end."""
        return None

    def check(self, space: Mapping[str, Dimension]) -> Iterator[tuple[str, str]]:
        """`(path, message)` for every dimension this sampler cannot search."""
        yield from ()


ALGORITHMS = Registry("sweeps.search", AlgorithmSpec)  # type: ignore[type-abstract]
"""The search algorithms."""
