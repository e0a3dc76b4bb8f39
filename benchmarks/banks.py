"""Feature banks of a given shape with generated features: weakly separated classes around random centers.

Speed depends only on the shapes. The features only have to train without diverging.
Shapes: N training images, D features, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from settings import Shape
from torch import Tensor

from lt_train.datasets.longtail import class_sizes
from lt_train.features.bank import EvalSet, FeatureBank

__all__ = ["class_counts", "generate", "resized", "small_bank", "write_npz"]


def class_counts(shape: Shape) -> Tensor:
    """Images per class, int64 `[K]` with sum N: an exponential profile, scaled if N was reduced; no class is empty."""
    counts = torch.tensor(class_sizes(shape.n_max, shape.imbalance_ratio, shape.classes))
    if int(counts.sum()) != shape.images:
        counts = 1 + (counts * ((shape.images - shape.classes) / int(counts.sum()))).long()
        counts[0] += shape.images - int(counts.sum())
    return counts


def generate(shape: Shape) -> FeatureBank:
    """A bank in memory with one training view, one test view, no validation set and a random stage-1 head."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(shape.classes, shape.dim, generator=generator).mul_(0.2)
    counts = class_counts(shape)

    def draw(labels: Tensor) -> Tensor:
        features = torch.randn(1, len(labels), shape.dim, generator=generator)
        for start in range(0, len(labels), 4096):  # in parts, to bound the memory for copied centers
            part = slice(start, start + 4096)
            features[0, part] += centers[labels[part]]
        return features

    labels = torch.arange(shape.classes).repeat_interleave(counts)
    test_labels = torch.arange(shape.test_images) % shape.classes
    weight = torch.randn(shape.classes, shape.dim, generator=generator).mul_(shape.dim**-0.5)
    return FeatureBank(
        fingerprint=f"generated {shape.name}",
        train_features=draw(labels),
        train_labels=labels,
        val=None,
        test=EvalSet(draw(test_labels), test_labels),
        head=(weight, torch.zeros(shape.classes)),
        class_counts=counts,
        split_counts=counts,
    )


def small_bank() -> FeatureBank:
    """A bank that trains in seconds, for warm-up."""
    return generate(Shape("small", 40, 8, 4, 20, n_max=10, imbalance_ratio=1))


def resized(shape: Shape, *, images: float = 1, dim: float = 1, classes: float = 1) -> Shape:
    """The shape with N (and the number of test images), D or K multiplied by a factor."""
    return replace(
        shape,
        images=round(shape.images * images),
        test_images=round(shape.test_images * images),
        dim=round(shape.dim * dim),
        classes=round(shape.classes * classes),
    )


def write_npz(bank: FeatureBank, path: Path) -> None:
    """Write the bank as a file for `dataset: {kind: arrays}`."""
    assert bank.head is not None
    np.savez(
        path,
        train_features=bank.train_features[0].numpy(),
        train_labels=bank.train_labels.numpy(),
        test_features=bank.test.features[0].numpy(),
        test_labels=bank.test.labels.numpy(),
        weight=bank.head[0].numpy(),
        bias=bank.head[1].numpy(),
    )
