"""Models of somebody's package, which `--allow-import support` lets be imported: small, and built as published ones.

`Ride` is built as RIDE is (Wang et al. 2021, code: ride_resnet_cifar): a shared trunk, a branch and a classifier an
expert. Where those are LDAM's normalised ones, the scale `s` comes after the layer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import system  # noqa: F401  # no function of this package

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

__all__ = ["CLASSIFIERS", "Half", "HalfTrunk", "Heads", "Parametrized", "Ride", "Tiny", "no_model"]


class Scaled(nn.Linear):
    """`30 (W f / |f| + b)`: neither linear nor a cosine, for its rows have lengths."""

    def forward(self, features: Tensor) -> Tensor:
        return 30 * super().forward(normalize(features))


class Normed(nn.Module):
    """LDAM's: cosines, weight `[D, K]`; what multiplies them comes later."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, classes))

    def forward(self, features: Tensor) -> Tensor:
        return normalize(features, dim=1).mm(normalize(self.weight, dim=0))


class Cosine(nn.Module):
    """A cosine classifier with a scale that is learned, weight `[K, D]`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))
        self.scale = nn.Parameter(torch.tensor(16.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * linear(normalize(features), normalize(self.weight))


class Squashed(Cosine):
    """OLTR's: `16 |f| / (1 + |f|) cos(W_k, f)`, which is no cosine: the length of features counts."""

    def forward(self, features: Tensor) -> Tensor:
        length = features.norm(dim=1, keepdim=True)
        return length / (1 + length) * super().forward(features)


class Lookalike(nn.Module):
    """Linear, and no `nn.Linear`; weight `[D, K]`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, classes))
        self.bias = nn.Parameter(torch.randn(classes))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


class Casting(nn.Linear):
    """Linear in its own precision, whatever its features are in."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.to(self.weight.dtype))


class Asking(nn.Linear):
    """Makes no logits of features alone: margins need labels."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return super().forward(features)


CLASSIFIERS = {
    "linear": nn.Linear,
    "unbiased": lambda features, classes: nn.Linear(features, classes, bias=False),
    "bilinear": lambda features, classes: nn.Bilinear(features, features, classes),
    "weight_norm": lambda features, classes: nn.utils.parametrizations.weight_norm(nn.Linear(features, classes)),
    "old_weight_norm": lambda features, classes: nn.utils.weight_norm(nn.Linear(features, classes)),
    "scaled": Scaled,
    "normed": Normed,
    "cosine": Cosine,
    "squashed": Squashed,
    "casting": Casting,
    "lookalike": Lookalike,
    "asking": Asking,
    "unused": nn.Linear,
}


class Tiny(nn.Module):
    """One classifier on top of a hidden layer; logits, `times` some number, come in a mapping."""

    def __init__(self, layer: str = "linear", classes: int = 5, times: float = 1.0, hidden: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden = nn.Linear(4, hidden)
        self.classifier = CLASSIFIERS[layer](hidden, classes)
        self.spare = nn.Linear(hidden, classes) if layer == "unused" else None
        self.inputs = 2 if layer in ("bilinear", "asking") else 1
        self.times = times

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.hidden(self.backbone(images))
        return {"logits": self.times * self.classifier(*[features] * self.inputs)}


class Parametrized(Tiny):
    """Weights that are made anew at every look at them, of the hidden layers and of the classifier."""

    def __init__(self) -> None:
        super().__init__("weight_norm")
        nn.utils.parametrizations.weight_norm(self.backbone[0])
        nn.utils.parametrizations.spectral_norm(self.hidden)


class Half(Tiny):
    """In half precision, to which it brings its images; `fixed`, whatever its weights are in."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.fixed = fixed
        self.half()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(images.to(torch.float16 if self.fixed else self.hidden.weight.dtype))


class HalfTrunk(Tiny):
    """A trunk that runs in half precision, and a classifier that takes it from there."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.hidden(self.backbone(images)).bfloat16())}


class Ride(nn.Module):
    """Experts on a shared trunk, with `dims` features each; what it `returns` of their logits differs by code base."""

    def __init__(
        self,
        dims: Sequence[int] = (6, 6, 6),
        layers: Sequence[str] = ("linear",) * 3,
        s: float = 1.0,
        classes: Sequence[int] = (5, 5, 5),
        returns: str = "mean",
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, dim, 3), nn.BatchNorm2d(dim), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            for dim in dims
        )
        tops = zip(layers, dims, classes, strict=False)
        self.linears = nn.ModuleList(CLASSIFIERS[layer](dim, count) for layer, dim, count in tops)
        self.s, self.returns = s, returns

    def forward(self, images: Tensor) -> object:
        shared = self.trunk(images)
        logits = [self.s * top(branch(shared)) for branch, top in zip(self.branches, self.linears, strict=True)]
        if self.returns == "list":
            return logits
        stacked = torch.stack(logits, dim=1)
        return {
            "mean": lambda: stacked.mean(dim=1),
            "sum": lambda: stacked.sum(dim=1),
            "first": lambda: logits[0],
            "softmax": lambda: stacked.softmax(dim=2).mean(dim=1),
            "named": lambda: {"output": stacked.mean(dim=1), "logits": stacked},
            "confident": lambda: (stacked.mean(dim=1), torch.ones(len(images), 1, dtype=torch.long)),
        }[self.returns]()


class Heads(nn.Module):
    """Two heads of which neither has anything to do with the other's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Flatten()
        self.coarse, self.fine = nn.Linear(192, 2), nn.Linear(192, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.coarse(features), self.fine(features)


def no_model() -> int:
    """Leaves a trace where it ran."""
    os.environ["LT_TINY_RAN"] = "1"
    return 3
