"""What a scheduler is: the part of a search that stops poor trials early.

A scheduler kind is one file in this folder with one `EarlyStoppingSpec` subclass. Which runs are stopped is decided inside
a pack, by the engine, from the pack alone; a scheduler only says by which rule. Only trials of the search are
scheduled: baselines and finalists always run whole. Knows no search, ledger or backend.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from lt_train.core.registry import KindSpec, Registry
from lt_train.methods.base import TrainingSpec
from lt_train.retrain.base import Halving

__all__ = [
    "EARLY_STOPPING",
    "EarlyStoppingSpec",
]


class EarlyStoppingSpec(KindSpec):
    """Base of every scheduler kind."""

    @abstractmethod
    def halving(self, training: TrainingSpec) -> Halving | None:
        """The rule by which the trials of a pack are stopped; None when all of them run whole."""

    def check(self, training: TrainingSpec) -> Iterator[tuple[str, str]]:
        """`(field, message)` for every field of this scheduler that has no meaning for runs of this length."""
        yield from ()


EARLY_STOPPING = Registry("sweeps.search", EarlyStoppingSpec)  # type: ignore[type-abstract]
"""The early-stopping rules."""
