"""Class priors `p_k = n_k / N`, or as given by the user, and class weights by effective number.

Shapes: K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from lt_train.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Prior", "effective_number_weights", "empty_classes", "log_prior", "prior_incompatibility"]

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
