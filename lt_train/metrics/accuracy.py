"""Top-1 accuracy by class split.

Shapes: N images, B a batch of them, K classes, L any lane axes (possibly none).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lt_train.core.imports import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SPLITS", "correct_per_class", "split_accuracy", "split_masks", "split_of", "top1_correct"]


SPLITS = ("all", "many", "medium", "few")
"""The splits of the classes, and the first columns of every score array."""

MANY_ABOVE = 100
FEW_BELOW = 20


def split_masks(split_counts: Tensor) -> Tensor:
    """The classes of each split (Liu et al. 2019): many n > 100, medium 20 <= n <= 100, few n < 20.

    Args:
        split_counts: int `[K]`, training images per class.

    Returns:
        bool `[4, K]`, rows in the order of `SPLITS`; the first row is all true.
    """
    many, few = split_counts > MANY_ABOVE, split_counts < FEW_BELOW
    return torch.stack([torch.ones_like(many), many, ~many & ~few, few])


def split_of(count: int) -> str:
    """The split of a class with `count` training images, as in `split_masks`: `many`, `medium` or `few`."""
    return "many" if count > MANY_ABOVE else "few" if count < FEW_BELOW else "medium"


def top1_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the true class has the strictly largest logit. Ties and NaN count as wrong.

    So a head whose logits are all equal has accuracy 0, whatever the order of the classes. Several times faster than
    `argmax` on a CPU.

    Args:
        logits: float `[..., K]`.
        labels: int64, broadcastable to `[...]`.

    Returns:
        bool `[...]`.
    """
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    true = logits.gather(-1, index).squeeze(-1)
    return true > logits.scatter(-1, index, -torch.inf).amax(dim=-1)


def correct_per_class(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Number of correct top-1 predictions by true class.

    Args:
        logits: float `[B, *L, K]`.
        labels: int64 `[B]`.
        num_classes: K.

    Returns:
        float32 `[*L, K]`.
    """
    lanes = logits.shape[1:-1]
    right = top1_correct(logits, labels.view(-1, *([1] * len(lanes))))
    counts = torch.zeros(num_classes, *lanes, device=logits.device)
    counts.index_add_(0, labels, right.to(counts.dtype))
    return counts.movedim(0, -1)


def split_accuracy(
    correct: Tensor, total: Tensor, masks: Tensor, average: Literal["micro", "macro"] = "micro"
) -> Tensor:
    """Accuracy by split.

    `micro` is top-1 accuracy (correct images over images), as papers report it on balanced test sets. `macro` is the
    mean of the per-class accuracies: the same on a balanced set, and an unbiased estimate of it on an unbalanced set.

    Args:
        correct: float `[*L, K]`, correct predictions per class.
        total: float or int `[K]`, images per class.
        masks: bool `[4, K]` from `split_masks`.
        average: weighting of the classes.

    Returns:
        float `[*L, 4]` in [0, 1]; NaN for a split without images.
    """
    seen = masks & (total > 0)
    # In double precision, so that ties between epochs do not depend on the order of summation.
    right = correct.double()
    if average == "macro":
        right, total = right / total.clamp(min=1), torch.ones_like(total)
    weights = seen.double()
    return ((right @ weights.T) / (weights @ total.double())).to(correct.dtype)
