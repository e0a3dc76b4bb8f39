"""Base class of losses: a per-sample function of logits, and its gradient, for any number of lane axes.

A loss object holds its hyperparameters as tables that broadcast to `[..., K]`. Calling it evaluates the definition,
which autograd can differentiate; the reference engine uses this form. `with_gradient` computes the same loss and its
gradient by hand where that is faster; the fused engine uses it. Class priors `p_k = n_k / N` and class weights by
effective number are at the end.

Shapes: K classes, `...` any leading axes, for example `[S, B, T]` for seeds, batch and lanes. Per-sample values are
kept as columns `[..., 1]`, so that they broadcast against the logits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import AfterValidator, Field

from lt_train.core.imports import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Loss",
    "Prior",
    "Table",
    "add_at_",
    "column",
    "effective_number_weights",
    "empty_classes",
    "exponentials",
    "label_index",
    "log_prior",
    "of_label",
    "prior_incompatibility",
]


Table: TypeAlias = "Tensor | float"
"""A hyperparameter: a number, or a tensor that broadcasts to `[..., K]`; one column applies to all classes."""


class Loss(ABC):
    """Base class of losses."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]` in nats, of logits `[..., K]` and int64 labels that broadcast to `[...]`.

        For finite logits the loss and its gradient are finite.
        """

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """`(loss [...], scale * d loss / d logits [..., K])`; `scale` broadcasts to `[...]`. `logits` is not changed.

        The default uses autograd. Losses override it with a faster gradient.
        """
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = self(leaf, labels)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient.mul_(column(scale))


def column(scale: Tensor | float) -> Tensor | float:
    """A value that broadcasts to `[...]`, reshaped to broadcast to `[..., 1]`."""
    return scale.unsqueeze(-1) if isinstance(scale, torch.Tensor) else scale


def label_index(labels: Tensor, logits: Tensor) -> Tensor:
    """Index of the true class of each sample on the last axis, int64 `[..., 1]`, for `gather` and `scatter`."""
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)


def of_label(table: Table, index: Tensor, logits: Tensor) -> Table:
    """The table entry of the true class of each sample, broadcastable to `[..., 1]`."""
    if not isinstance(table, torch.Tensor) or table.ndim == 0 or table.shape[-1] == 1:
        return table
    return table.expand(logits.shape).gather(-1, index)


def add_at_(values: Tensor, index: Tensor, amount: Tensor | float) -> Tensor:
    """Add `amount`, broadcastable to `[..., 1]`, to `values` at `index`, in place."""
    if isinstance(amount, torch.Tensor):
        return values.scatter_add_(-1, index, amount.to(values.dtype).expand(index.shape))
    # Filled on the device: copying a number to it would synchronise.
    return values.scatter_add_(-1, index, torch.full(index.shape, amount, dtype=values.dtype, device=values.device))


def exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(e, total, peak)` with `e = exp(z - peak) [..., K]`, `total` its sum and `peak` the largest logit, `[..., 1]`.

    So `softmax = e / total` and `log softmax_k = z_k - peak - log total`. This takes half the time of `torch.softmax`
    and its logarithm: exp2 is vectorised on every CPU, exp is not, and the caller combines the division with its own
    scaling.
    """
    peak = logits.amax(dim=-1, keepdim=True)
    # Subtract before scaling: the difference of two rounded products is neither 0 at the peak of large logits nor
    # finite.
    powers = (logits - peak).mul_(math.log2(math.e)).exp2_()
    return powers, powers.sum(dim=-1, keepdim=True), peak


TOLERANCE = 1e-3
"""Allowed deviation from 1 of the sum of a given prior, for rounded numbers."""


def _check_prior(prior: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if prior is None:
        return prior
    lowest = min(prior, default=0.0)
    if lowest <= 0:
        raise ValueError(f"every class must have a share > 0, got {lowest:g}")
    total = math.fsum(prior)
    if abs(total - 1.0) > TOLERANCE:
        raise ValueError(f"shares must sum to 1 (within {TOLERANCE:g}), got a sum of {total:g}")
    return prior


Prior = Annotated[
    tuple[float, ...] | None,
    AfterValidator(_check_prior),
    Field(description="share of each class, K numbers > 0 that sum to 1; default: the training set's n_k / N"),
]


def effective_number_weights(beta: Tensor, class_counts: Tensor) -> Tensor:
    """`(1 - beta) / (1 - beta^n_k)`, scaled to sum K (Cui et al. 2019, Eq. 6); beta = 0 gives 1 for every class.

    Args:
        beta: in [0, 1), any shape.
        class_counts: int64 `[K]`, > 0.

    Returns:
        `[..., K]`, of the dtype of `beta`.
    """
    # In double precision, so that the powers of beta lose no more precision than beta itself has lost in float32.
    one_beta = beta.double().unsqueeze(-1)
    weights = (1.0 - one_beta) / (1.0 - one_beta**class_counts)
    return (weights * (len(class_counts) / weights.sum(dim=-1, keepdim=True))).to(beta.dtype)


def log_prior(prior: tuple[float, ...] | None, class_counts: Tensor) -> Tensor:
    """Natural logarithm of the prior, float32 `[K]`, on the device of `class_counts` (int64 `[K]`)."""
    if prior is None:
        return (class_counts.double() / class_counts.sum()).log().float()
    given = torch.tensor(prior, dtype=torch.float64, device=class_counts.device)
    return (given / given.sum()).log().float()


def prior_incompatibility(prior: tuple[float, ...] | None, class_counts: Tensor) -> str:
    """Why a prior cannot be used with these class counts `[K]`; empty if it can."""
    if prior is None:
        return empty_classes(class_counts)
    if len(prior) != len(class_counts):
        return f"prior must have one share for each of the {len(class_counts)} classes, got {len(prior)}"
    return ""


def empty_classes(class_counts: Tensor) -> str:
    """An error message that names the classes without training images; empty if there are none."""
    empty = (class_counts == 0).nonzero().flatten().tolist()
    if not empty:
        return ""
    named = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
    return f"every class must have training images, but {len(empty)} of {len(class_counts)} have none: {named}"
