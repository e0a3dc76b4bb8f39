"""Small generated banks: overlapping Gaussian classes and a weak stage-1 head that favours the large ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lt_train.features.bank import EvalSet, FeatureBank

__all__ = ["COUNTS", "make_bank"]

COUNTS = (120, 60, 30, 15, 8, 1)
"""Training images per class: many, medium and few, and a class with one image."""


def make_bank(
    counts: Sequence[int] = COUNTS,
    *,
    dim: int = 8,
    views: int = 3,
    test_views: int = 2,
    val_per_class: int = 12,
    test_images: int = 1000,
    head: bool = True,
    seed: int = 0,
) -> FeatureBank:
    """A new bank. Test labels cycle through the classes, so `test_images=5` covers only five classes."""
    stream = torch.Generator().manual_seed(seed)
    classes = len(counts)
    means = torch.randn(classes, dim, generator=stream)

    def images(labels: Tensor, views: int) -> Tensor:
        kernel = means[labels] + 0.9 * torch.randn(len(labels), dim, generator=stream)
        return kernel + 0.2 * torch.randn(views, len(labels), dim, generator=stream)

    numbers = torch.tensor(counts)
    train, test = torch.arange(classes).repeat_interleave(numbers), torch.arange(test_images) % classes
    val = torch.arange(classes).repeat_interleave(val_per_class)
    return FeatureBank(
        fingerprint="test",
        train_features=images(train, views),
        train_labels=train,
        val=EvalSet(images(val, 1), val) if val_per_class else None,
        test=EvalSet(images(test, test_views), test),
        head=(0.1 * means + 0.3 * torch.randn(classes, dim, generator=stream), 0.3 * numbers.log()) if head else None,
        class_counts=numbers,
        split_counts=numbers,
    )
