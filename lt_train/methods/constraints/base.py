"""What a constraint is: a projection of the head's weight rows, applied while it is trained.

A constraint kind is one file with one `ConstraintSpec` subclass. Knows torch only.

Shapes: S seeds, T lanes (trials), K classes, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lt_train.core.registry import KindSpec, Registry

__all__ = [
    "CONSTRAINTS",
    "ConstraintSpec",
]


class ConstraintSpec(KindSpec):
    """Base of every constraint kind."""

    every: Annotated[Literal["epoch", "step"], Field(description="how often weights are projected")] = "epoch"

    @abstractmethod
    def project_(self, rows: Tensor, dim: int, start_norms: Tensor, lanes: Mapping[str, Tensor]) -> None:
        """Project weight rows in place.

        Args:
            rows: the weights, `[K, D]` of a plain module or `[S, D, T, K]` stacked; biases are free.
            dim: their feature axis.
            start_norms: `[K]`, the lengths of the stage-1 head's rows.
            lanes: this spec's float fields, broadcastable to the lengths of `rows` but for the class axis:
                `[]`, or `[S, 1, T]` stacked.
        """


CONSTRAINTS = Registry("lt_train.methods.constraints", ConstraintSpec)  # type: ignore[type-abstract]
"""The constraints."""
