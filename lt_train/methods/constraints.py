"""Constraints: projections of the weight rows of a head, applied during training.

Shapes: S seeds, T lanes (trials), K classes, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lt_train.core.fields import BATCHED
from lt_train.core.registry import KindSpec, Registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CONSTRAINTS", "ConstraintSpec", "MaxNorm"]


class ConstraintSpec(KindSpec):
    """Base class of constraints."""

    every: Annotated[Literal["epoch", "step"], Field(description="when the weights are projected")] = "epoch"

    @abstractmethod
    def project_(self, rows: Tensor, dim: int, start_norms: Tensor, lanes: Mapping[str, Tensor]) -> None:
        """Project weight rows in place. Biases are not constrained.

        Args:
            rows: the weights, `[K, D]` for a plain module or `[S, D, T, K]` stacked.
            dim: their feature axis.
            start_norms: `[K]`, the row norms of the stage-1 head.
            lanes: the batched fields of this spec, broadcastable to the norms of `rows` without the class axis:
                `[]`, or `[S, 1, T]` stacked.
        """


CONSTRAINTS = Registry("constraints", ConstraintSpec, "lt_train.methods.constraints")  # type: ignore[type-abstract]
"""The plugin group of constraints."""


@CONSTRAINTS.register
class MaxNorm(ConstraintSpec):
    """Scales rows longer than delta to length delta; delta = min + fraction (max - min) over the stage-1 row norms.

    Source: Alshammari et al. 2022, Long-Tailed Recognition via Weight Balancing; paper, Table 1.
    """

    kind: Literal["maxnorm"] = "maxnorm"
    fraction: Annotated[
        float,
        BATCHED,
        Field(gt=0, description="position of the radius between the shortest (0) and longest (1) stage-1 row, > 0"),
    ] = 0.1

    def project_(self, rows: Tensor, dim: int, start_norms: Tensor, lanes: Mapping[str, Tensor]) -> None:
        """See `ConstraintSpec.project_`."""
        shortest, longest = start_norms.min(), start_norms.max()
        radius = shortest + lanes["fraction"] * (longest - shortest)
        # linalg.vector_norm is several times slower on a middle axis on CPUs.
        norms = rows.square().sum(dim=dim, keepdim=True).sqrt().clamp(min=1e-12)  # a row of zeros stays zero
        rows.mul_((radius.unsqueeze(-1) / norms).clamp(max=1.0))
