"""`ce`: plain cross entropy, the paper's stage 1 (LTWB's strong baseline when weight decay is large)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from lt_train.pretrain.base import RecipeSpec

__all__ = ["CrossEntropyRecipe"]


class CrossEntropyRecipe(RecipeSpec):
    """Cross entropy without label smoothing or class weights."""

    kind: Literal["ce"] = "ce"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits)[labels]`, float `[B]`."""
        return functional.cross_entropy(logits, labels, reduction="none")
