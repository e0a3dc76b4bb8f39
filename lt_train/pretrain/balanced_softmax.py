"""`balanced_softmax`: cross entropy of `z + log n` (Ren et al. 2020; paper, Table 4) on LDAM's schedule."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.priors import empty_classes
from lt_train.pretrain.schedule import StepRecipe

__all__ = ["BalancedSoftmaxRecipe"]


class BalancedSoftmaxRecipe(StepRecipe):
    """Class sizes are added to the logits, as logarithms, in training only: the network need not learn them."""

    kind: Literal["balanced_softmax"] = "balanced_softmax"

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `RecipeSpec.unfit`."""
        return empty_classes(class_counts)

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits + log n)[y]`, float `[B]`."""
        return CrossEntropy(shift=class_counts.log())(logits, labels)
