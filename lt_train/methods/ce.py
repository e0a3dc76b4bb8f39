"""`ce`: plain cross entropy (Table 4, column "CE")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import TrainedMethod

__all__ = ["PlainCrossEntropy"]


class PlainCrossEntropy(TrainedMethod):
    """The head is trained on with the loss of stage 1: what re-training alone brings."""

    kind: Literal["ce"] = "ce"

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy()
