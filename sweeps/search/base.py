"""Search spaces, the interface of search algorithms, and early stopping.

A search algorithm decides which trials are run. It is a pure function of the recorded trials: `propose` returns the
values of the next trials. The same arguments must give the same values in any process, because a resumed sweep calls
it with the trials that its ledger holds.

Early stopping decides which trials of a search are stopped before their last epoch. The training engine decides inside
a pack, from the runs of that pack, by the rule that a kind returns. Baselines and finalists always run all epochs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from lt_train.core.registry import KindSpec, Registry, Spec

if TYPE_CHECKING:
    from lt_train.methods.base import TrainingSpec
    from lt_train.retrain.base import Halving

__all__ = [
    "ALGORITHMS",
    "EARLY_STOPPING",
    "AlgorithmSpec",
    "Choice",
    "Dimension",
    "EarlyStoppingSpec",
    "IntRange",
    "LogUniform",
    "NoEarlyStopping",
    "Range",
    "Space",
    "SuccessiveHalving",
    "Tried",
    "Uniform",
]


Scalar = bool | int | float | str | None


class _Dimension(Spec):
    """The range of one searched hyperparameter, written as a mapping with a single key."""

    model_config = ConfigDict(serialize_by_alias=True)

    key: ClassVar[str]

    @abstractmethod
    def probes(self) -> Iterator[tuple[int, Scalar]]:
        """`(index in the list, value)` of the values to validate; if they are valid, all values of the range are."""

    @abstractmethod
    def at(self, share: float) -> Scalar:
        """The value at a share of the range, in [0, 1): a uniform share gives the distribution of the dimension."""


class Range(_Dimension):
    """Base of dimensions with two bounds, both included. `number` is the type of the field they apply to."""

    number: ClassVar[type]

    bounds: Sequence[float]

    @property
    def low(self) -> float:
        """The lower bound."""
        return self.bounds[0]

    @property
    def high(self) -> float:
        """The upper bound."""
        return self.bounds[1]

    def probes(self) -> Iterator[tuple[int, Scalar]]:
        """Both bounds: the allowed values of a field form an interval, so values between valid bounds are valid."""
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


_TwoBounds = Field(min_length=2, max_length=2)
_Ordered = AfterValidator(_ordered)


class Uniform(Range):
    """A number from low to high, uniformly distributed."""

    key: ClassVar[str] = "uniform"
    number: ClassVar[type] = float

    bounds: Annotated[list[float], _TwoBounds, _Ordered] = Field(
        alias="uniform", description="[low, high], low < high: numbers from low to high, uniformly distributed"
    )

    def at(self, share: float) -> float:
        """See `_Dimension.at`."""
        return min(self.low + share * (self.high - self.low), self.high)


class LogUniform(Range):
    """A number from low to high, uniformly distributed on a logarithmic scale."""

    key: ClassVar[str] = "loguniform"
    number: ClassVar[type] = float

    bounds: Annotated[list[float], _TwoBounds, _Ordered, AfterValidator(_positive)] = Field(
        alias="loguniform",
        description="[low, high], 0 < low < high: numbers from low to high, uniform on a logarithmic scale",
    )

    def at(self, share: float) -> float:
        """See `_Dimension.at`."""
        return float(min(max(self.low * (self.high / self.low) ** share, self.low), self.high))


class IntRange(Range):
    """A whole number from low to high, both included, uniformly distributed."""

    key: ClassVar[str] = "int"
    number: ClassVar[type] = int

    bounds: Annotated[list[int], _TwoBounds, _Ordered] = Field(
        alias="int", description="[low, high], low < high: whole numbers from low to high, both included"
    )

    def at(self, share: float) -> int:
        """See `_Dimension.at`."""
        low, high = int(self.low), int(self.high)
        return low + int(share * (high - low + 1))


class Choice(_Dimension):
    """One of the listed values; their order has no meaning."""

    key: ClassVar[str] = "choice"

    values: Annotated[list[Any], Field(min_length=1), AfterValidator(_distinct)] = Field(
        alias="choice", description="the values to choose from; at least one, all different"
    )

    def probes(self) -> Iterator[tuple[int, Scalar]]:
        """Every value."""
        yield from enumerate(self.values)

    def at(self, share: float) -> Scalar:
        """See `_Dimension.at`."""
        value: Scalar = self.values[int(share * len(self.values))]
        return value


def _key_of(document: Any) -> str | None:
    """The single key of a dimension as written in a file, which selects its type."""
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
"""Dimensions by dotted path (`method.lr`), in the order of the file."""


@dataclass(frozen=True)
class Tried:
    """A recorded trial, as a search algorithm sees it.

    Attributes:
        params: the searched values by dotted path. They lie in the space of the sweep file with which the trial was
            proposed; a resumed sweep may have another one.
        state: `stopped` is a trial that early stopping ended before its last epoch.
        value: the objective, finite, larger is better; None while the trial is running or if it failed.
        epochs: of a stopped trial: the number of epochs after which it was stopped, with `value` measured there.
    """

    params: Mapping[str, Any]
    state: Literal["running", "finished", "stopped", "failed"]
    value: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        has_value = self.state in ("finished", "stopped")
        assert (self.value is not None) == has_value, f"a {self.state} trial has value {self.value}"
        assert self.value is None or math.isfinite(self.value), f"the value must be finite, got {self.value}"
        assert self.state != "stopped" or self.epochs is not None, "a stopped trial needs its number of epochs"


class AlgorithmSpec(KindSpec):
    """Base class of the search algorithms."""

    library: ClassVar[str] = ""
    """The package whose version may change what is proposed, recorded with every trial; empty if there is none."""

    @abstractmethod
    def propose(
        self, space: Mapping[str, Dimension], seed: int, tried: Sequence[Tried], count: int
    ) -> list[dict[str, Any]]:
        """The values of the next `count` trials by dotted path; fewer if the search is exhausted.

        The result depends on nothing but the arguments. A smaller `count` must give the first trials of a larger one.

        Args:
            space: the searched dimensions.
            seed: all randomness comes from it and from the numbers of the trials.
            tried: all earlier trials by number: the first proposed trial has the number `len(tried)`. Those of the
                previous proposal batch are normally still running.
            count: the number of trials to propose.
        """

    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """The number of trials after which the search is exhausted; None if it never is."""
        return None

    def check(self, space: Mapping[str, Dimension]) -> Iterator[tuple[str, str]]:
        """`(path, message)` for every dimension that this algorithm cannot search."""
        yield from ()


ALGORITHMS = Registry("algorithms", AlgorithmSpec, "sweeps.search", modules=["algorithms"])  # type: ignore[type-abstract]
"""The plugin group of search algorithms."""


class EarlyStoppingSpec(KindSpec):
    """Base class of the early stopping rules."""

    @abstractmethod
    def halving(self, training: TrainingSpec) -> Halving | None:
        """The rule by which the trials of a pack are stopped; None if all of them run all epochs."""

    def check(self, training: TrainingSpec) -> Iterator[tuple[str, str]]:
        """`(field, message)` for every field that has no effect for runs of this length."""
        yield from ()


EARLY_STOPPING = Registry("early_stopping", EarlyStoppingSpec, "sweeps.search", modules=["base"])  # type: ignore[type-abstract]
"""The plugin group of early stopping rules."""


@EARLY_STOPPING.register
class NoEarlyStopping(EarlyStoppingSpec):
    """Every trial runs all epochs."""

    kind: Literal["none"] = "none"

    def halving(self, training: TrainingSpec) -> Halving | None:
        """None."""
        return None


def _ascending(rungs: tuple[int, ...]) -> tuple[int, ...]:
    if list(rungs) != sorted(set(rungs)):
        raise ValueError(f"rungs must be in ascending order, got {list(rungs)}")
    return rungs


@EARLY_STOPPING.register
class SuccessiveHalving(EarlyStoppingSpec):
    """Stops the poorer trials of a pack after each rung (Jamieson and Talwalkar, AISTATS 2016).

    After a rung the best 1/factor of the trials that train together continue. Trials are ranked by the mean over their
    seeds, whatever `selection.objective` is.
    """

    kind: Literal["successive_halving"] = "successive_halving"
    rungs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_ascending)] = Field(
        default=(5, 10),
        description="epochs after which trials are compared, each >= 1, in ascending order; no trial is stopped after "
        "the last rung",
    )
    factor: float = Field(
        default=2.0, gt=1, description="after a rung one trial in `factor` continues, rounded up; > 1"
    )

    def halving(self, training: TrainingSpec) -> Halving | None:
        """The rungs before the last epoch; later ones would have no effect."""
        from lt_train.retrain.base import Halving

        rungs = tuple(rung for rung in self.rungs if rung < training.epochs)
        return Halving(rungs, self.factor) if rungs else None

    def check(self, training: TrainingSpec) -> Iterator[tuple[str, str]]:
        """At least one rung must lie before the last epoch."""
        if min(self.rungs) >= training.epochs:
            yield (
                "rungs",
                f"must have at least one below training.epochs, which is {training.epochs}, got {list(self.rungs)}",
            )
