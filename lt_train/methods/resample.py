"""Method `resample`: cross entropy on class-balanced batches (paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import TrainedMethod
from lt_train.methods.samplers.class_balanced import ClassBalanced

__all__ = ["Resample"]


class Resample(TrainedMethod):
    """The stage-1 head is trained on with every class equally often in a batch; `crt` does so from a fresh head."""

    kind: Literal["resample"] = "resample"
    sampler: ClassBalanced = Field(default=ClassBalanced(), description="what makes it `resample`, and not `ce`")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy()
