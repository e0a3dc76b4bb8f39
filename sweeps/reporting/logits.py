"""What two classifiers make of the test pictures: one picture's logits (Fig. 1) and true against other logits (Fig. 2).

One pass over the test features in batches; memory is a few numbers a class and a histogram, whatever K. Knows torch and
tensors; knows no sweep and no drawing.

Shapes: A test views, N images, B a batch, D features, K classes, H bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lt_train.features.bank import EvalSet
from lt_train.metrics import hits

__all__ = ["Histogram", "Telling", "histograms", "logits_of", "telling_picture"]

BATCH = 1024
BINS = 48


def logits_of(classifier: nn.Module, features_AND: Tensor) -> Tensor:
    """Logits `[N, K]`, the mean over test views, as they are scored."""
    with torch.inference_mode():
        return torch.stack([classifier(view) for view in features_AND.float()]).mean(dim=0)


def _batches(classifiers: Sequence[nn.Module], test: EvalSet) -> Iterator[tuple[list[Tensor], Tensor, int]]:
    for start in range(0, len(test.labels), BATCH):
        features = test.features[:, start : start + BATCH]
        yield [logits_of(one, features) for one in classifiers], test.labels[start : start + BATCH], start


@dataclass(frozen=True)
class Telling:
    """A test picture that one classifier gets wrong and the other right, with both logits `[K]`."""

    index: int
    label: int
    before: Tensor
    after: Tensor


def telling_picture(before: nn.Module, after: nn.Module, test: EvalSet, classes: Tensor) -> Telling | None:
    """Of the pictures of `classes` (bool `[K]`) that only `after` gets right, the one it gained most on.

    Gain is in margins (own logit minus the largest other) over the spread of the picture's logits, which a scale of
    all logits does not change. None where there is no such picture.
    """
    best: tuple[float, Telling] | None = None
    for (old, new), labels, start in _batches([before, after], test):
        rescued = ~hits(old, labels) & hits(new, labels) & classes[labels]
        if not rescued.any():
            continue
        gain = torch.where(rescued, _margin(new, labels) - _margin(old, labels), -torch.inf)
        place = int(gain.argmax())
        if best is None or float(gain[place]) > best[0]:
            best = (float(gain[place]), Telling(start + place, int(labels[place]), old[place], new[place]))
    return None if best is None else best[1]


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


def histograms(classifier: nn.Module, test: EvalSet, groups: Sequence[Tensor]) -> list[Histogram]:
    """One for each group of classes (bool `[K]`): a class's logit over its own pictures, and over all other pictures.

    So the distance of the two means of a class is its LoMa (Eq. 6), here over the classes of a group together.
    """
    low, high = torch.inf, -torch.inf
    for (logits,), _, _ in _batches([classifier], test):
        low, high = min(low, float(logits.min())), max(high, float(logits.max()))
    high = max(high, low + 1e-6)
    counts = torch.zeros(len(groups), 2, BINS, dtype=torch.float64)
    sums, numbers = torch.zeros(len(groups), 2, dtype=torch.float64), torch.zeros(len(groups), 2, dtype=torch.float64)
    for (logits,), labels, _ in _batches([classifier], test):
        own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        for place, group in enumerate(groups):
            for kind, chosen in enumerate((own & group, ~own & group)):
                values = logits[chosen]
                counts[place, kind] += torch.histc(values, BINS, low, high)
                sums[place, kind] += values.double().sum()
                numbers[place, kind] += len(values)
    edges = torch.linspace(low, high, BINS + 1)
    width = (high - low) / BINS
    density, means = counts / numbers.clamp(min=1).unsqueeze(-1) / width, sums / numbers.clamp(min=1)
    return [
        Histogram(edges, density[place, 0], density[place, 1], float(means[place, 0]), float(means[place, 1]))
        for place in range(len(groups))
    ]
