"""Early stopping: which trials of a search are stopped before their last epoch.

The training engine decides inside a pack, from the runs of that pack, by the rule that a kind returns. Only trials of
the search are stopped; baselines and finalists always run all epochs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from lt_train.core.registry import KindSpec, Registry

if TYPE_CHECKING:
    from lt_train.methods.base import TrainingSpec
    from lt_train.retrain.base import Halving

__all__ = ["EARLY_STOPPING", "EarlyStoppingSpec", "NoEarlyStopping", "SuccessiveHalving"]


class EarlyStoppingSpec(KindSpec):
    """Base class of the early stopping rules."""

    @abstractmethod
    def halving(self, training: TrainingSpec) -> Halving | None:
        """The rule by which the trials of a pack are stopped; None if all of them run all epochs."""

    def check(self, training: TrainingSpec) -> Iterator[tuple[str, str]]:
        """`(field, message)` for every field that has no effect for runs of this length."""
        yield from ()


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


EARLY_STOPPING = Registry("sweeps.search", EarlyStoppingSpec, modules=("early_stopping",))  # type: ignore[type-abstract]
"""The early stopping rules."""
