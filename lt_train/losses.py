"""Losses: per-sample functions of logits, and their gradients, for any number of lane axes.

A loss object holds its hyperparameters as tables that broadcast to `[..., K]`. Calling it evaluates the definition,
which autograd can differentiate; the reference engine uses this form. `with_gradient` computes the same loss and its
gradient by hand where that is faster; the fused engine uses it. Class priors `p_k = n_k / N` and class weights by
effective number are here too.

Plain cross entropy, Label Over-Smooth, label-aware smoothing, balanced softmax, the logit-adjusted loss, LDAM and
re-weighted cross entropy are one function with different tables, so they share one gradient. The class-balanced loss
(Cui et al. 2019) was published as binary cross entropy over all classes on sigmoids. Much code, including LTWB
(Alshammari et al. 2022), uses softmax probabilities instead. Both are means over the K classes, so that the mean over a
batch of N equals the mean over N K in the original code.

Shapes: K classes, `...` any leading axes, for example `[S, B, T]` for seeds, batch and lanes. Per-sample values are
kept as columns `[..., 1]`, so that they broadcast against the logits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeAlias

from pydantic import AfterValidator, Field

from lt_train.core.imports import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

    from lt_train.core.seeding import Step

__all__ = [
    "BinarySigmoid",
    "BinarySoftmax",
    "CrossEntropy",
    "FocalLoss",
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
    """Base class of losses.

    Class attributes:
        over_batch: whether the loss of an image may depend on the other images of its batch. Such a loss always sees
            logits `[S, B, T, K]` and labels `[S, B, 1]`, with B images on axis 1, and hyperparameters `[S, 1, T]`; for
            one run, S = T = 1. Seeds and lanes must not depend on one another. The last batch may be short.
    """

    over_batch: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss `[...]` in nats, of logits `[..., K]` and int64 labels that broadcast to `[...]`.

        For finite logits the loss and its gradient are finite.
        """

    def at(self, step: Step) -> Loss:
        """The loss of one step; by default this loss. One with noise (`Step.draw`) or a schedule returns another."""
        return self

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """`(loss [...], scale * d loss / d logits [..., K])`; `scale` broadcasts to `[...]`. `logits` is not changed.

        Of a loss over the batch, the gradient of the sum of all losses, times `scale`, which is one number per lane.
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


PRIOR_TOLERANCE = 1e-3
"""Allowed deviation from 1 of the sum of a given prior, for rounded numbers."""


def _check_prior(prior: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if prior is None:
        return prior
    lowest = min(prior, default=0.0)
    if lowest <= 0:
        raise ValueError(f"every class must have a share > 0, got {lowest:g}")
    total = math.fsum(prior)
    if abs(total - 1.0) > PRIOR_TOLERANCE:
        raise ValueError(f"shares must sum to 1 (within {PRIOR_TOLERANCE:g}), got a sum of {total:g}")
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
