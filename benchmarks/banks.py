"""Feature banks of a given shape, filled with generated features: weakly separated classes around random centers.

Speed depends on shapes, not on what the features mean; they only have to train without diverging.
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
    """int64 `[K]`, summing to N: the exponential cut of the shape, scaled where N was shortened; no class is empty."""
    counts = torch.tensor(class_sizes(shape.n_max, shape.imbalance_ratio, shape.classes))
    if int(counts.sum()) != shape.images:
        counts = 1 + (counts * ((shape.images - shape.classes) / int(counts.sum()))).long()
        counts[0] += shape.images - int(counts.sum())
    return counts


def generate(shape: Shape) -> FeatureBank:
    """A bank in memory: one training view, one test view, no val, a stage-1 head of random rows."""
    stream = torch.Generator().manual_seed(0)
    centers = torch.randn(shape.classes, shape.dim, generator=stream).mul_(0.2)
    counts = class_counts(shape)

    def draw(labels: Tensor) -> Tensor:
        features = torch.randn(1, len(labels), shape.dim, generator=stream)
        for start in range(0, len(labels), 4096):  # a bounded copy of the centers, not another bank of them
            part = slice(start, start + 4096)
            features[0, part] += centers[labels[part]]
        return features

    labels = torch.arange(shape.classes).repeat_interleave(counts)
    test_labels = torch.arange(shape.test_images) % shape.classes
    weight = torch.randn(shape.classes, shape.dim, generator=stream).mul_(shape.dim**-0.5)
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
    """A bank of seconds, for warming up whatever a first call warms up."""
    return generate(Shape("small", 40, 8, 4, 20, n_max=10, imbalance_ratio=1))


def resized(shape: Shape, *, images: float = 1, dim: float = 1, classes: float = 1) -> Shape:
    """The shape with N (and test images with it), D or K multiplied."""
    return replace(
        shape,
        images=round(shape.images * images),
        test_images=round(shape.test_images * images),
        dim=round(shape.dim * dim),
        classes=round(shape.classes * classes),
    )


def write_npz(bank: FeatureBank, path: Path) -> None:
    """The bank as a user's own features, for `dataset: {kind: arrays}`."""
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
