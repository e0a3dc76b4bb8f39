"""`ce_drw`: cross entropy with deferred re-weighting (Cao et al. 2019; paper, Table 4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from lt_train.pretrain.deferred import DeferredReweighting

__all__ = ["DeferredCrossEntropy"]


class DeferredCrossEntropy(DeferredReweighting):
    """Cross entropy on LDAM's schedule; class-balanced weights from `reweight_epoch` on."""

    kind: Literal["ce_drw"] = "ce_drw"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`w_y * -log softmax(logits)[y]`, float `[B]`; w is 1 before `reweight_epoch`."""
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return self.reweighted(losses, labels, class_counts, epoch)
