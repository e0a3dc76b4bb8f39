"""Focal loss (Lin et al. 2017) on softmax probabilities: what is classified well already counts less.

The factor belongs to the image, not to the class; its gradient is followed too. Knows torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lt_train.losses.base import Loss, Table, add_at_, column, exponentials, label_index, of_label

__all__ = ["Focal"]


class Focal(Loss):
    """`-w_y (1 - p_y)^gamma log p_y` with `p = softmax(z)`, per sample; gamma = 0 is cross entropy.

    `1 - p_y` is taken to be at least the smallest normal number of the logits' type: where p_y rounds to 1, a gamma
    below 1 would have an infinite slope there; the loss and its gradient are 0 instead.

    Args:
        gamma: >= 0, broadcasts to `[..., 1]`.
        weight: w by true class, >= 0, broadcasts to `[..., K]`; one column, or a number, stands for all classes.
    """

    def __init__(self, gamma: Table, weight: Table = 1.0) -> None:
        self.gamma, self.weight = gamma, weight

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]`; see `losses.base.Loss`."""
        index = label_index(labels, logits)
        log_true = torch.log_softmax(logits, dim=-1).gather(-1, index)
        factor = _others(log_true) ** self.gamma
        return (of_label(self.weight, index, logits) * factor * -log_true).squeeze(-1)

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Loss and `scale * c (softmax(z) - e_y)`; see `losses.base.Loss`.

        `c = -dL/dlog p_y = w_y ((1 - p_y)^gamma - gamma (1 - p_y)^(gamma - 1) p_y log p_y)`.
        """
        index = label_index(labels, logits)
        gradient, total, peak = exponentials(logits)
        log_true = (logits.gather(-1, index) - peak).sub_(total.log())
        others = _others(log_true)
        weight, factor = of_label(self.weight, index, logits), others**self.gamma
        amount = column(scale) * weight * (factor - self.gamma * (factor / others) * log_true.exp() * log_true)
        gradient.mul_(amount / total)
        add_at_(gradient, index, -amount)
        return (weight * factor * -log_true).squeeze(-1), gradient


def _others(log_true: Tensor) -> Tensor:
    """`1 - p_y`, without the cancellation, and never 0."""
    return torch.expm1(log_true).neg().clamp(min=torch.finfo(log_true.dtype).tiny)
