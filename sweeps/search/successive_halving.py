"""`successive_halving`: after each rung the poorer trials of a pack stop (Jamieson and Talwalkar, AISTATS 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lt_train.methods.base import TrainingSpec
from lt_train.retrain.base import Halving
from sweeps.search.early_stopping import EarlyStoppingSpec

__all__ = ["SuccessiveHalving"]


def _ascending(rungs: tuple[int, ...]) -> tuple[int, ...]:
    if list(rungs) != sorted(set(rungs)):
        raise ValueError(f"rungs must ascend, each above the one before it, got {list(rungs)}")
    return rungs


class SuccessiveHalving(EarlyStoppingSpec):
    """The best 1/factor of the trials that train together go on after each rung; the others stop where they are.

    Trials are ranked by the mean over their seeds, whatever `selection.objective` is.
    """

    kind: Literal["successive_halving"] = "successive_halving"
    rungs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_ascending)] = Field(
        default=(5, 10), description="epochs after which trials are compared, ascending, each >= 1; past the last: none"
    )
    factor: float = Field(default=2.0, gt=1, description="one trial in factor goes on after a rung, rounded up, > 1")

    def halving(self, training: TrainingSpec) -> Halving | None:
        """The rungs below the last epoch; those at or after it would change nothing."""
        rungs = tuple(rung for rung in self.rungs if rung < training.epochs)
        return Halving(rungs, self.factor) if rungs else None

    def check(self, training: TrainingSpec) -> Iterator[tuple[str, str]]:
        """Rungs that no run gets past before its end stop nothing."""
        if self.halving(training) is None:
            yield (
                "rungs",
                f"must have at least one below training.epochs, which is {training.epochs}, got {list(self.rungs)}",
            )
