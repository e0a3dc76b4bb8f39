"""Logits of classifiers on the test images: of one image (Fig. 1) and their distribution (Fig. 2).

Shapes: A test views, N images, D features, K classes, H bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lt_train.features.bank import EvalSet
from lt_train.metrics import top1_correct

__all__ = ["HeadLogits", "head_logits", "histograms", "rescued_image"]

BINS = 48

MOST_LOGITS = 2**25
"""Most logits kept per classifier (128 MiB): 335,544 images of 100 classes or 4,121 images of 8,142 classes."""


@dataclass(frozen=True)
class HeadLogits:
    """Logits of several classifiers on the same test images.

    Attributes:
        images: indices in the test set `[N]`.
        labels: int64 `[N]`.
        logits: `[N, K]` of each classifier, mean over test views as in evaluation.
        total: size of the test set.
    """

    images: Tensor
    labels: Tensor
    logits: tuple[Tensor, ...]
    total: int


def head_logits(classifiers: Sequence[nn.Module], test: EvalSet, num_classes: int) -> HeadLogits:
    """Logits on the test set, or on a fixed random part of it if there would be more than `MOST_LOGITS`."""
    total = len(test.labels)
    most = max(1, MOST_LOGITS // num_classes)
    images = torch.arange(total)
    if total > most:
        images = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:most].sort().values
    features_AND = test.features[:, images].float()
    with torch.inference_mode():
        logits = tuple(torch.stack([one(view) for view in features_AND]).mean(dim=0) for one in classifiers)
    return HeadLogits(images, test.labels[images], logits, total)


@dataclass(frozen=True)
class RescuedImage:
    """A test image that the first classifier gets wrong and the second right, with both logits `[K]`."""

    index: int
    label: int
    before: Tensor
    after: Tensor


def rescued_image(both: HeadLogits, classes: Tensor) -> RescuedImage | None:
    """The image of `classes` (bool `[K]`) with the largest gain in margin that only the second classifier gets right.

    The margin is the logit of the true class minus the largest other, divided by the standard deviation of the image's
    logits so that the scale of a head does not matter. None if there is no such image.
    """
    old, new = both.logits
    rescued = torch.nonzero(
        ~top1_correct(old, both.labels) & top1_correct(new, both.labels) & classes[both.labels]
    ).squeeze(-1)
    if not len(rescued):
        return None
    labels = both.labels[rescued]
    place = int((_margin(new[rescued], labels) - _margin(old[rescued], labels)).argmax())
    row = int(rescued[place])
    return RescuedImage(int(both.images[row]), int(labels[place]), old[row], new[row])


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    index = labels.unsqueeze(-1)
    own = logits.gather(-1, index).squeeze(-1)
    other = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    return (own - other) / logits.std(dim=-1).clamp(min=1e-12)


@dataclass(frozen=True)
class Histogram:
    """Densities `[H]` of the logits of a group of classes, with bin `edges [H + 1]`, for true and other classes."""

    edges: Tensor
    true: Tensor
    other: Tensor
    true_mean: float
    other_mean: float


def histograms(logits: Tensor, labels: Tensor, groups: Sequence[Tensor]) -> list[Histogram]:
    """One per group of classes (bool `[K]`): logits of a class on its own images, and on all other images.

    The distance of the two means of a single class is its LoMa (Eq. 6); here the classes of a group are pooled.
    """
    low, high = float(logits.min()), float(logits.max())
    high = max(high, low + 1e-6)
    edges = torch.linspace(low, high, BINS + 1)
    own = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return [_histogram(logits[:, group], own[group[labels]], edges) for group in groups]


def _histogram(every: Tensor, true: Tensor, edges: Tensor) -> Histogram:
    """From all logits of a group of classes `[N, k]` and those on images of the true class `[n]`."""
    ends = (float(edges[0]), float(edges[-1]))
    counts = torch.stack([torch.histc(values, BINS, *ends).double() for values in (true, every)])
    sums = torch.stack([values.sum(dtype=torch.float64) for values in (true, every)])
    numbers = torch.tensor([true.numel(), every.numel()], dtype=torch.float64)
    counts[1], sums[1], numbers[1] = counts[1] - counts[0], sums[1] - sums[0], numbers[1] - numbers[0]
    width = (ends[1] - ends[0]) / BINS
    density = counts / numbers.clamp(min=1).unsqueeze(-1) / width
    means = sums / numbers.clamp(min=1)
    return Histogram(edges, density[0], density[1], float(means[0]), float(means[1]))
