"""What a loss is: a per-sample function of logits, and its gradient by the logits, for any number of lane axes.

A loss object holds its hyperparameters as tables that broadcast over `[..., K]`; calling it is the definition, which
autograd can differentiate. `with_gradient` is the same by hand where that is faster; the fused engine uses it, the
reference never does. One file a loss; knows torch only.

Shapes: K classes, `...` any leading axes, for example `[S, B, T]` for seeds, batch and lanes. What belongs to a sample
is a column `[..., 1]` on the way, so that it broadcasts against the logits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Loss", "Table", "add_at_", "column", "exponentials", "label_index", "of_label"]

Table = Tensor | float
"""A hyperparameter: a number, or a tensor that broadcasts to `[..., K]`; one column stands for all classes."""


class Loss(ABC):
    """Base of every loss."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]` of logits `[..., K]` and int64 labels that broadcast to `[...]`; natural logarithms.

        Finite, and with a finite gradient, wherever the logits are.
        """

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """`(loss [...], scale * d loss / d logits [..., K])`; `scale` broadcasts to `[...]`. Leaves `logits` as it is.

        This one asks autograd; a loss that knows better overrides it.
        """
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = self(leaf, labels)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient.mul_(column(scale))


def column(scale: Tensor | float) -> Tensor | float:
    """What broadcasts to `[...]`, as something that broadcasts to `[..., 1]`."""
    return scale.unsqueeze(-1) if isinstance(scale, Tensor) else scale


def label_index(labels: Tensor, logits: Tensor) -> Tensor:
    """int64 `[..., 1]`: where each sample's true class is on the last axis, for `gather` and `scatter`."""
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)


def of_label(table: Table, index: Tensor, logits: Tensor) -> Table:
    """What a table says of each sample's true class: broadcastable to `[..., 1]`. One column is not looked up."""
    if not isinstance(table, Tensor) or table.ndim == 0 or table.shape[-1] == 1:
        return table
    return table.expand(logits.shape).gather(-1, index)


def add_at_(values: Tensor, index: Tensor, amount: Tensor | float) -> Tensor:
    """Add `amount`, broadcastable to `[..., 1]`, at `index` in place."""
    if isinstance(amount, Tensor):
        return values.scatter_add_(-1, index, amount.to(values.dtype).expand(index.shape))
    # Filled on the device: a number carried there would stop it.
    return values.scatter_add_(-1, index, torch.full(index.shape, amount, dtype=values.dtype, device=values.device))


def exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(e, total, peak)` with `e = exp(z - peak) [..., K]`, `total` its sum and `peak` the largest logit, `[..., 1]`.

    So `softmax = e / total` and `log softmax_k = z_k - peak - log total`. Half the time of `torch.softmax` followed by
    the two maxima that give its logarithm: exp2 is vectorised on every CPU where exp may not be, and the division is
    left to the caller, who has to scale by something anyway.
    """
    peak = logits.amax(dim=-1, keepdim=True)
    # The difference first: of two products, each rounded, it would not be 0 at the peak of large logits, nor finite.
    powers = (logits - peak).mul_(math.log2(math.e)).exp2_()
    return powers, powers.sum(dim=-1, keepdim=True), peak
