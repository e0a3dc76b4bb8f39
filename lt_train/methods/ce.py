"""`ce`: plain cross entropy on a linear head (Table 4, column "CE")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from lt_train.losses.cross_entropy import cross_entropy
from lt_train.methods.base import TrainedMethod

__all__ = ["CrossEntropy"]


class CrossEntropy(TrainedMethod):
    """The head is trained on with the loss of stage 1: what re-training alone brings."""

    kind: Literal["ce"] = "ce"

    @classmethod
    def loss(cls, logits: Tensor, labels: Tensor, lanes: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy, per sample; see `TrainedMethod.loss` for shapes."""
        return cross_entropy(logits, labels)
