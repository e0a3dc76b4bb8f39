"""Small models of an external package, which `--allow-import support` admits, built like published ones.

`Ride` follows RIDE (Wang et al. 2021, code: ride_resnet_cifar): a shared trunk, and a branch and a classifier per
expert. With LDAM's normalised classifiers the scale `s` is applied after the layer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import system  # noqa: F401  # imported, not defined in this package

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

__all__ = ["CLASSIFIERS", "Half", "HalfTrunk", "Heads", "Parametrized", "Ride", "Tiny", "no_model"]


class Scaled(nn.Linear):
    """`30 (W f / |f| + b)`: neither linear nor a cosine, because row lengths matter."""

    def forward(self, features: Tensor) -> Tensor:
        return 30 * super().forward(normalize(features))


class Normed(nn.Module):
    """LDAM's classifier: cosines, weight `[D, K]`; the scale is applied later."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, classes))

    def forward(self, features: Tensor) -> Tensor:
        return normalize(features, dim=1).mm(normalize(self.weight, dim=0))


class Cosine(nn.Module):
    """A cosine classifier with a learned scale, weight `[K, D]`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))
        self.scale = nn.Parameter(torch.tensor(16.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * linear(normalize(features), normalize(self.weight))


class Squashed(Cosine):
    """OLTR's: `16 |f| / (1 + |f|) cos(W_k, f)`, not a cosine, because the length of features matters."""

    def forward(self, features: Tensor) -> Tensor:
        length = features.norm(dim=1, keepdim=True)
        return length / (1 + length) * super().forward(features)


class Lookalike(nn.Module):
    """Linear, but not an `nn.Linear`; weight `[D, K]`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, classes))
        self.bias = nn.Parameter(torch.randn(classes))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


class Casting(nn.Linear):
    """Linear in its own precision, whatever the precision of its features."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.to(self.weight.dtype))


class Asking(nn.Linear):
    """Cannot compute logits from features alone: margins need labels."""

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
    """One classifier on a hidden layer; returns `times` its logits in a mapping."""

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
    """Parametrised weights, recomputed at every access, in the hidden layers and the classifier."""

    def __init__(self) -> None:
        super().__init__("weight_norm")
        nn.utils.parametrizations.weight_norm(self.backbone[0])
        nn.utils.parametrizations.spectral_norm(self.hidden)


class Half(Tiny):
    """In half precision; images are cast to that of the weights or, with `fixed`, to float16."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.fixed = fixed
        self.half()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(images.to(torch.float16 if self.fixed else self.hidden.weight.dtype))


class HalfTrunk(Tiny):
    """A trunk whose features are bfloat16, and a classifier that accepts them."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.hidden(self.backbone(images)).bfloat16())}


class Ride(nn.Module):
    """Experts on a shared trunk, with `dims` features each; `returns` selects what it computes from their logits."""

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
    """Two heads for different sets of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Flatten()
        self.coarse, self.fine = nn.Linear(192, 2), nn.Linear(192, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.coarse(features), self.fine(features)


def no_model() -> int:
    """Sets an environment variable when it runs; returns no model."""
    os.environ["LT_TINY_RAN"] = "1"
    return 3
