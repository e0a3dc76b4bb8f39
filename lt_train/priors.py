"""Class priors p_k = n_k / N: from the training counts, or as a user gives them. Knows torch only.

Shapes: K classes.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

__all__ = ["Prior", "empty_classes", "log_prior", "unfit_prior"]

TOLERANCE = 1e-3
"""How far a given prior may be from summing to 1: room for rounded figures."""


def _sound(prior: tuple[float, ...] | None) -> tuple[float, ...] | None:
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
    AfterValidator(_sound),
    Field(description="share of each class, K numbers > 0 that sum to 1; default: the training set's n_k / N"),
]


def log_prior(prior: tuple[float, ...] | None, class_counts: Tensor) -> Tensor:
    """Natural logarithm of the prior, float32 `[K]`, on the device of `class_counts` (int64 `[K]`)."""
    if prior is None:
        return (class_counts.double() / class_counts.sum()).log().float()
    given = torch.tensor(prior, dtype=torch.float64, device=class_counts.device)
    return (given / given.sum()).log().float()


def unfit_prior(prior: tuple[float, ...] | None, class_counts: Tensor) -> str:
    """Why a prior is no use for these classes; empty where it is."""
    if prior is None:
        return empty_classes(class_counts)
    if len(prior) != len(class_counts):
        return f"prior must have one share for each of the {len(class_counts)} classes, got {len(prior)}"
    return ""


def empty_classes(class_counts: Tensor) -> str:
    """Says which classes have no training picture, for whatever takes a logarithm or a power of n_k; empty if none."""
    empty = (class_counts == 0).nonzero().flatten().tolist()
    if not empty:
        return ""
    named = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
    return f"every class must have training pictures, but {len(empty)} of {len(class_counts)} have none: {named}"
