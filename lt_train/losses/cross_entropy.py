"""Cross entropy with smoothed labels, shifted logits, margins and class weights; and the focal loss.

Plain cross entropy, Label Over-Smooth, label-aware smoothing, balanced softmax, the logit-adjusted loss, LDAM and
re-weighted cross entropy are one function with different tables, so they share one gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lt_train.core.lazy import torch
from lt_train.losses.base import Loss, Table, add_at_, column, exponentials, label_index, of_label

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CrossEntropy", "FocalLoss"]


class CrossEntropy(Loss):
    """`-w_y sum_k y~_k log softmax(z + a - m_y e_y)_k` with `y~ = (1 - d_y) e_y + d_y / K`, per sample. Range: >= 0.

    Without arguments this is plain cross entropy. A constant d is Label Over-Smooth (paper, Eq. 12): d = 0 is cross
    entropy, d -> 1 approaches uniform targets, and at the optimum the true logit exceeds the others by
    `log(1 + K(1 - d)/d)`.

    Args:
        smooth_factor: d of the true class, in `[0, 1)`.
        shift: a, added to the logits of every sample in training (log n_k for balanced softmax).
        margin: m of the true class, subtracted from the true logit (LDAM).
        weight: w of the true class, >= 0.

    All four broadcast to `[..., K]`; one column, or a number, applies to all classes.
    """

    def __init__(
        self,
        smooth_factor: Table = 0.0,
        shift: Tensor | None = None,
        margin: Table | None = None,
        weight: Table = 1.0,
    ) -> None:
        self.smooth_factor, self.shift, self.margin, self.weight = smooth_factor, shift, margin, weight

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]`; see `Loss`."""
        index = label_index(labels, logits)
        weight, smooth = of_label(self.weight, index, logits), of_label(self.smooth_factor, index, logits)
        log_probabilities = torch.log_softmax(self._shifted(logits, index), dim=-1)
        true, mean = log_probabilities.gather(-1, index), log_probabilities.mean(dim=-1, keepdim=True)
        return (weight * ((smooth - 1.0) * true - smooth * mean)).squeeze(-1)

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Loss and `scale * w_y (softmax(z') - y~)` with z' the shifted logits; see `Loss`."""
        index = label_index(labels, logits)
        weight, smooth = of_label(self.weight, index, logits), of_label(self.smooth_factor, index, logits)
        shifted = self._shifted(logits, index)
        gradient, total, peak = exponentials(shifted)
        true = shifted.gather(-1, index)
        loss = (peak - true).add_(total.log())
        amount = column(scale) * weight
        gradient.mul_(amount / total)
        if isinstance(smooth, torch.Tensor) or smooth != 0.0:
            loss.add_(true.sub_(shifted.mean(dim=-1, keepdim=True)).mul_(smooth))
            gradient.sub_(amount * smooth / logits.shape[-1])
        add_at_(gradient, index, amount * (smooth - 1.0))
        return (weight * loss).squeeze(-1), gradient

    def _shifted(self, logits: Tensor, index: Tensor) -> Tensor:
        """`z + a - m_y e_y`; without shift and margin the logits themselves."""
        shifted = logits if self.shift is None else logits + self.shift
        if self.margin is None:
            return shifted
        margin = of_label(self.margin, index, logits)
        return add_at_(shifted.clone() if shifted is logits else shifted, index, -margin)


class FocalLoss(Loss):
    """`-w_y (1 - p_y)^gamma log p_y` with `p = softmax(z)`, per sample; gamma = 0 is cross entropy. Range: >= 0.

    The smallest normal number of the dtype is the lower bound of `1 - p_y`. Without it, a gamma below 1 would have an
    infinite slope where p_y rounds to 1; with it, the loss and its gradient are 0 there. The gradient includes that of
    the factor. Source: Lin et al. 2017, Focal Loss for Dense Object Detection.

    Args:
        gamma: >= 0, broadcasts to `[..., 1]`.
        weight: w of the true class, >= 0, broadcasts to `[..., K]`; one column, or a number, applies to all classes.
    """

    def __init__(self, gamma: Table, weight: Table = 1.0) -> None:
        self.gamma, self.weight = gamma, weight

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]`; see `Loss`."""
        index = label_index(labels, logits)
        log_true = torch.log_softmax(logits, dim=-1).gather(-1, index)
        factor = _others(log_true) ** self.gamma
        return (of_label(self.weight, index, logits) * factor * -log_true).squeeze(-1)

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Loss and `scale * c (softmax(z) - e_y)`; see `Loss`.

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
    """`1 - p_y` without cancellation, and never 0."""
    return torch.expm1(log_true).neg().clamp(min=torch.finfo(log_true.dtype).tiny)
