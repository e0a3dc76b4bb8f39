"""`maxnorm`: no weight row longer than a radius (Alshammari et al. 2022; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lt_train.methods.constraints.base import ConstraintSpec

__all__ = ["MaxNorm"]


class MaxNorm(ConstraintSpec):
    """Rows longer than delta = min + fraction (max - min) of the stage-1 head's row lengths are cut to delta."""

    kind: Literal["maxnorm"] = "maxnorm"
    fraction: Annotated[
        float,
        Field(gt=0, description="where the radius lies between the shortest (0) and longest (1) stage-1 row, > 0"),
    ] = 0.1

    def project_(self, rows: Tensor, dim: int, start_norms: Tensor, lanes: Mapping[str, Tensor]) -> None:
        """See `ConstraintSpec.project_`."""
        shortest, longest = start_norms.min(), start_norms.max()
        radius = shortest + lanes["fraction"] * (longest - shortest)
        # Not linalg.vector_norm, which walks a middle axis several times slower on a CPU.
        norms = rows.square().sum(dim=dim, keepdim=True).sqrt().clamp(min=1e-12)  # a row of zeros stays one
        rows.mul_((radius.unsqueeze(-1) / norms).clamp(max=1.0))
