"""`ce_steps`: plain cross entropy on LDAM's schedule, beside the recipes that share it (paper, Table 4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from lt_train.pretrain.schedule import StepRecipe

__all__ = ["CrossEntropySteps"]


class CrossEntropySteps(StepRecipe):
    """What `ce_drw` is without its re-weighting; `ce` is the same loss on a cosine schedule."""

    kind: Literal["ce_steps"] = "ce_steps"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits)[labels]`, float `[B]`."""
        return functional.cross_entropy(logits, labels, reduction="none")
