"""What classifiers make of the test images: one image's logits (Fig. 1) and true against other logits (Fig. 2).

All logits of up to `MOST_LOGITS` are held, of more images than that a random part. Knows torch and tensors; knows no
sweep and no drawing.

Shapes: A test views, N images, D features, K classes, H bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lt_train.features.bank import EvalSet
from lt_train.metrics.accuracy import top1_correct

__all__ = ["Histogram", "Scored", "Telling", "histograms", "scored", "telling_image"]

BINS = 48

MOST_LOGITS = 2**25
"""Of one classifier: 128 MiB, 335,544 images of 100 classes or 4,121 of 8,142."""


@dataclass(frozen=True)
class Scored:
    """Test images under several classifiers.

    Attributes:
        images: their places in the test set `[N]`.
        labels: int64 `[N]`.
        logits: `[N, K]` of each classifier, the mean over test views, as they are scored.
        there: images in the test set.
    """

    images: Tensor
    labels: Tensor
    logits: tuple[Tensor, ...]
    there: int


def scored(classifiers: Sequence[nn.Module], test: EvalSet, num_classes: int) -> Scored:
    """The whole test set, or of a very large one a part that is the same every time."""
    there = len(test.labels)
    most = max(1, MOST_LOGITS // num_classes)
    images = torch.arange(there)
    if there > most:
        images = torch.randperm(there, generator=torch.Generator().manual_seed(0))[:most].sort().values
    features_AND = test.features[:, images].float()
    with torch.inference_mode():
        logits = tuple(torch.stack([one(view) for view in features_AND]).mean(dim=0) for one in classifiers)
    return Scored(images, test.labels[images], logits, there)


@dataclass(frozen=True)
class Telling:
    """A test image that one classifier gets wrong and the other right, with both logits `[K]`."""

    index: int
    label: int
    before: Tensor
    after: Tensor


def telling_image(both: Scored, classes: Tensor) -> Telling | None:
    """Of the images of `classes` (bool `[K]`) that only the second gets right, the one it gained most on.

    Gain is in margins (own logit minus the largest other) over the spread of the image's logits, which a scale of
    all logits does not change. None where there is no such image.
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
    return Telling(int(both.images[row]), int(labels[place]), old[row], new[row])


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    index = labels.unsqueeze(-1)
    own = logits.gather(-1, index).squeeze(-1)
    other = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    return (own - other) / logits.std(dim=-1).clamp(min=1e-12)


@dataclass(frozen=True)
class Histogram:
    """Logits of a group of classes: density over bins `[H]` with `edges [H + 1]`, for the true class and for others."""

    edges: Tensor
    true: Tensor
    other: Tensor
    true_mean: float
    other_mean: float


def histograms(logits: Tensor, labels: Tensor, groups: Sequence[Tensor]) -> list[Histogram]:
    """One for each group of classes (bool `[K]`): a class's logit over its own images, and over all other images.

    So the distance of the two means of a class is its LoMa (Eq. 6), here over the classes of a group together.
    """
    low, high = float(logits.min()), float(logits.max())
    high = max(high, low + 1e-6)
    edges = torch.linspace(low, high, BINS + 1)
    own = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return [_histogram(logits[:, group], own[group[labels]], edges) for group in groups]


def _histogram(every: Tensor, true: Tensor, edges: Tensor) -> Histogram:
    """Of all logits of a group's classes `[N, k]`, among them those of their own images `[n]`."""
    ends = (float(edges[0]), float(edges[-1]))
    counts = torch.stack([torch.histc(values, BINS, *ends).double() for values in (true, every)])
    sums = torch.stack([values.sum(dtype=torch.float64) for values in (true, every)])
    numbers = torch.tensor([true.numel(), every.numel()], dtype=torch.float64)
    counts[1], sums[1], numbers[1] = counts[1] - counts[0], sums[1] - sums[0], numbers[1] - numbers[0]
    width = (ends[1] - ends[0]) / BINS
    density = counts / numbers.clamp(min=1).unsqueeze(-1) / width
    means = sums / numbers.clamp(min=1)
    return Histogram(edges, density[0], density[1], float(means[0]), float(means[1]))
