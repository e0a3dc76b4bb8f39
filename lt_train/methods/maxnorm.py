"""Method `maxnorm`: cross entropy with bounded weight rows (Alshammari et al. 2022; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import TrainedMethod
from lt_train.methods.constraints.maxnorm import MaxNorm

__all__ = ["MaxNormRetraining"]


class MaxNormRetraining(TrainedMethod):
    """The head is trained on while rows longer than a radius are cut to it, so that no class wins by length.

    Source: Alshammari et al. 2022, Long-Tailed Recognition via Weight Balancing; `ltwb` is the whole of its stage 2.
    """

    kind: Literal["maxnorm"] = "maxnorm"
    constraint: MaxNorm = Field(default=MaxNorm(), description="the radius, and how often rows are cut")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy()
