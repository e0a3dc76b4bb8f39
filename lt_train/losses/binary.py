"""Binary cross entropy over all classes, on softmax or on sigmoid probabilities, weighted by the true class.

The class-balanced loss (Cui et al. 2019) was published with the sigmoid form. Much code, including LTWB (Alshammari et
al. 2022), uses the softmax form. Both are means over the K classes, so that the mean over a batch of N equals the mean
over N K in the original code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lt_train.core.lazy import functional, torch
from lt_train.losses.base import Loss, Table, add_at_, column, exponentials, label_index, of_label

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BinarySigmoid", "BinarySoftmax"]


class BinarySoftmax(Loss):
    """`-(w_y / K) (log p_y + sum over k != y of log(1 - p_k))` with `p = softmax(z)`, per sample.

    For p_k close to 1, `1 - p_k` is computed as the sum of the other probabilities, with the smallest normal number of
    the dtype as lower bound. `torch.nn.functional.binary_cross_entropy` subtracts instead, which underflows in float32
    once the logit leads by 17, and clamps. Otherwise the two agree. Range: >= 0.

    Args:
        weight: w of the true class, >= 0, broadcasts to `[..., K]`; one column, or a number, applies to all classes.
    """

    def __init__(self, weight: Table = 1.0) -> None:
        self.weight = weight

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]`; see `Loss`."""
        index, top = label_index(labels, logits), logits.argmax(dim=-1, keepdim=True)
        others = torch.softmax(logits, dim=-1).scatter(-1, top, 0.0)
        rest = others.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
        log_wrong = torch.log1p(-others).scatter(-1, top, rest.log()).scatter(-1, index, 0.0)
        log_true = torch.log_softmax(logits, dim=-1).gather(-1, index)
        weight = of_label(self.weight, index, logits) / logits.shape[-1]
        return (-weight * (log_true + log_wrong.sum(dim=-1, keepdim=True))).squeeze(-1)

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Loss and gradient; see `Loss`.

        With the odds `r_k = p_k / (1 - p_k)` of the wrong classes and their sum R, the derivative with respect to a
        wrong logit is `(w_y / K)(r_j + p_j (1 - R))`, and `(w_y / K)(p_y (1 - R) - 1)` with respect to the true one. A
        leading class t with p_t above one half is treated separately, because its odds are unbounded, while `r_t (1 -
        p_t) = p_t` and `p_j r_t = p_t p_j / sum of the others` are bounded. The product of the remaining `1 - p_k` is
        at least 1/4, so one logarithm per sample is sufficient.
        """
        index = label_index(labels, logits)
        powers, total, peak = exponentials(logits)
        leads, true = total < 1.9, logits.gather(-1, index)
        is_top = logits >= torch.where(leads, peak, math.inf)
        others = powers.masked_fill_(is_top, 0.0)
        rest = others.sum(dim=-1, keepdim=True)
        p_top = (rest + leads).reciprocal_()
        others.mul_(p_top)
        rest.mul_(p_top)
        least = torch.finfo(logits.dtype).tiny
        right, wrong = leads & (true == peak), leads & (true != peak)
        followed = (wrong & (rest >= least)).to(logits.dtype)
        rest.clamp_(min=least)

        left = (1.0 - others).scatter_(-1, index, 1.0)
        weight = of_label(self.weight, index, logits) / logits.shape[-1]
        log_wrong = left.prod(dim=-1, keepdim=True).log_() + wrong * rest.log()
        loss = -weight * (log_wrong + (true - peak) + p_top.log())

        gradient = torch.div(others, left, out=left).scatter_(-1, index, 0.0)
        odds = gradient.sum(dim=-1, keepdim=True)
        gradient.add_(others.mul_(1.0 - odds - followed * p_top / rest))
        add_at_(gradient, index, -1.0)
        of_top = torch.where(right, -odds * p_top - rest, p_top * (1.0 - odds + followed))
        gradient = torch.where(is_top, of_top, gradient)
        return loss.squeeze(-1), gradient.mul_(column(scale) * weight)


class BinarySigmoid(Loss):
    """`(w_y / K) (sum over k of log(1 + exp z_k) - z_y)`, per sample: one binary decision per class. Range: >= 0.

    Args:
        weight: w of the true class, >= 0, broadcasts to `[..., K]`; one column, or a number, applies to all classes.
    """

    def __init__(self, weight: Table = 1.0) -> None:
        self.weight = weight

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]`; see `Loss`."""
        index = label_index(labels, logits)
        # Above 40, log(1 + exp z) equals z in float64 too; the default threshold of torch, 20, suits float32.
        questions = functional.softplus(logits, threshold=40.0).sum(dim=-1, keepdim=True)
        weight = of_label(self.weight, index, logits) / logits.shape[-1]
        return (weight * (questions - logits.gather(-1, index))).squeeze(-1)

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Loss and `scale (w_y / K)(sigmoid(z) - e_y)`; see `Loss`."""
        index = label_index(labels, logits)
        amount = column(scale) * of_label(self.weight, index, logits) / logits.shape[-1]
        gradient = torch.sigmoid(logits).mul_(amount)
        return self(logits, labels), add_at_(gradient, index, -amount)
