"""Trained classifiers as one linear layer: per-class factors and post-hoc adjustments are folded into its weights.

Shapes: K classes, D features.
"""

from __future__ import annotations

from lt_train.core.imports import nn, torch
from lt_train.methods.heads.base import Classifier

__all__ = ["as_linear"]


def as_linear(classifier: nn.Module) -> Classifier | None:
    """`(weight [K, D], bias [K])` of the one linear layer that computes the same logits; None if there is none.

    For `torch.nn.Linear` these are its own tensors, so that logits are equal to the bit. Other modules state it
    themselves by a method `linear`, which returns the two tensors or None; logits are then equal up to rounding.
    """
    if isinstance(classifier, nn.Linear):
        weight, bias = classifier.weight, classifier.bias
        found: Classifier | None = (weight, weight.new_zeros(len(weight)) if bias is None else bias)
    else:
        linear = getattr(classifier, "linear", None)
        with torch.no_grad():
            found = linear() if callable(linear) else None
    return None if found is None else (found[0].detach().contiguous(), found[1].detach().contiguous())
