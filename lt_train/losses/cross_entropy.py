"""Cross entropy with everything that the field adds to it: smoothed labels, shifted logits, margins, class weights.

Plain CE, Label Over-Smooth, label-aware smoothing, balanced softmax, logit-adjusted loss, LDAM and re-weighted CE are
all this one function with other tables, and so share one gradient. Knows torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lt_train.losses.base import Loss, Table, add_at_, column, exponentials, label_index, of_label

__all__ = ["CrossEntropy"]


class CrossEntropy(Loss):
    """`w_y * -sum_k y~_k log softmax(z + a - m_y e_y)_k` with `y~ = (1 - d_y) e_y + d_y / K`, per sample, natural log.

    With no argument it is plain cross entropy. Constant d is Label Over-Smooth (paper, Eq. 12): d = 0 is cross entropy,
    d -> 1 approaches uniform targets, and at the optimum the true logit stands `log(1 + K(1 - d)/d)` above the others.

    Args:
        smooth_factor: d by true class, in `[0, 1)`.
        shift: a, added to the logits of every sample in training (log n_k for balanced softmax).
        margin: m by true class, taken off the true logit (LDAM).
        weight: w by true class, >= 0.

    All four broadcast to `[..., K]`; one column, or a number, stands for all classes.
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
        """Per-sample loss `[...]`; see `losses.base.Loss`."""
        index = label_index(labels, logits)
        weight, smooth = of_label(self.weight, index, logits), of_label(self.smooth_factor, index, logits)
        log_probabilities = torch.log_softmax(self._moved(logits, index), dim=-1)
        true, mean = log_probabilities.gather(-1, index), log_probabilities.mean(dim=-1, keepdim=True)
        return (weight * ((smooth - 1.0) * true - smooth * mean)).squeeze(-1)

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Loss and `scale * w_y (softmax(z') - y~)` with z' the moved logits; see `losses.base.Loss`."""
        index = label_index(labels, logits)
        weight, smooth = of_label(self.weight, index, logits), of_label(self.smooth_factor, index, logits)
        moved = self._moved(logits, index)
        gradient, total, peak = exponentials(moved)
        true = moved.gather(-1, index)
        loss = (peak - true).add_(total.log())
        amount = column(scale) * weight
        gradient.mul_(amount / total)
        if isinstance(smooth, Tensor) or smooth != 0.0:
            loss.add_(true.sub_(moved.mean(dim=-1, keepdim=True)).mul_(smooth))
            gradient.sub_(amount * smooth / logits.shape[-1])
        add_at_(gradient, index, amount * (smooth - 1.0))
        return (weight * loss).squeeze(-1), gradient

    def _moved(self, logits: Tensor, index: Tensor) -> Tensor:
        """`z + a - m_y e_y`; the logits themselves where neither is asked for."""
        moved = logits if self.shift is None else logits + self.shift
        if self.margin is None:
            return moved
        margin = of_label(self.margin, index, logits)
        return add_at_(moved.clone() if moved is logits else moved, index, -margin)
