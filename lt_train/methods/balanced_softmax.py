"""Method `balanced_softmax`: cross entropy of `z + log n` (Ren et al. 2020; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.priors import empty_classes
from lt_train.methods.base import TrainedMethod

__all__ = ["BalancedSoftmax"]


class BalancedSoftmax(TrainedMethod):
    """Class sizes are added to the logits, as logarithms, in training only: the head need not learn them.

    Source: Ren et al. 2020, Balanced Meta-Softmax for Long-Tailed Visual Recognition.
    """

    corrects_prior: ClassVar[bool] = True

    kind: Literal["balanced_softmax"] = "balanced_softmax"

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy(shift=class_counts.log())

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `MethodSpec.unfit`."""
        return super().incompatibility(class_counts) or empty_classes(class_counts)
