"""What a backbone is: a frozen spec that builds a network from images to features.

A backbone family is one file in this folder with one `BackboneSpec` subclass a kind. It knows torch only.
Shapes: B images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lt_train.core.registry import KindSpec, Registry

__all__ = [
    "BACKBONES",
    "BackboneSpec",
    "Classifier",
    "FrozenBackbone",
    "L2Normalize",
]


@dataclass(frozen=True)
class FrozenBackbone:
    """A trained network that turns images into features, on the CPU in evaluation mode, and the head it came with.

    Attributes:
        network: `[B, C, H, W] -> [B, D]`.
        feature_dim: D.
        head: the classifier `(weight [K, D], bias [K])` it was trained with; None where there is none to start from.
        in_channels: how many channels images must have.
        mean, std: per channel, on the 0..1 scale, what its images were normalised with; None: not known.
        identity: JSON of what decides its features: `backbone` and `checkpoint`, the sha256 of the file.
        called: what to call it in an error; `remedy` says what to do where it does not fit a dataset.
        notes: what a user must know about how it was read.
        record: JSON of how it was trained, `recipe`, `seed`, `accuracy` and `curve`, as far as its checkpoint says.
    """

    network: nn.Module
    feature_dim: int
    head: tuple[Tensor, Tensor] | None
    in_channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    identity: dict[str, Any]
    called: str
    remedy: str
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


class BackboneSpec(KindSpec):
    """Base of every backbone kind: parameters as fields, `build` as the implementation.

    `checkpoint` is for sweeps, which start from a trained backbone; `build` ignores it.
    """

    checkpoint: Annotated[
        str | None,
        Field(description="safetensors file written by `lt-train backbone`; null trains one with the stage-1 recipe"),
    ] = None

    @abstractmethod
    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """A freshly initialised network `[B, C, H, W] -> [B, D]` and its D."""

    def read_checkpoint(self, image_shape: tuple[int, int, int]) -> FrozenBackbone | None:
        """The network with the weights of `checkpoint`, for kinds that read files of others.

        Args:
            image_shape: `(C, H, W)` of the images it is for.

        Returns:
            None where `checkpoint` is to be read as what `lt-train backbone` writes, as it is unless a kind overrides.

        Raises:
            UserError: the kind's own reasons.
        """
        return None


class Classifier(nn.Module):
    """A backbone and the stage-1 head on top of it: `[B, C, H, W] -> logits [B, K]`.

    The head is linear, or with `cosine_scale` LDAM's: then the backbone ends in the directions of its features, and
    the bank that is extracted with it holds those.
    """

    def __init__(
        self, spec: BackboneSpec, in_channels: int, num_classes: int, cosine_scale: float | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.cosine_scale = cosine_scale
        self.backbone, self.feature_dim = spec.build(in_channels)
        self.head: nn.Linear | NormalisedHead
        if cosine_scale is None:
            self.head = nn.Linear(self.feature_dim, num_classes)
        else:
            self.backbone = nn.Sequential(self.backbone, L2Normalize())
            self.head = NormalisedHead(self.feature_dim, num_classes, cosine_scale)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def linear_head(self) -> tuple[Tensor, Tensor]:
        """`(weight [K, D], bias [K])` that make of the backbone's features the logits: where re-training starts."""
        if isinstance(self.head, NormalisedHead):
            weight, bias = self.head.linear()
        else:
            weight, bias = self.head.weight, self.head.bias
        return weight.detach(), bias.detach()


class L2Normalize(nn.Module):
    """Features of length 1: `f / |f|`; a feature of zeros stays."""

    def forward(self, features: Tensor) -> Tensor:
        """`[B, D] -> [B, D]`."""
        return nn.functional.normalize(features, dim=-1)


class NormalisedHead(nn.Module):
    """`s cos(W_k, f)` of features of length 1, without a bias (Cao et al. 2019, code: NormedLinear).

    As a linear head it has rows `s W_k / |W_k|` and bias 0, and that is how it computes its logits.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        start = torch.empty(num_classes, feature_dim).uniform_(-1, 1)
        self.weight = nn.Parameter(nn.functional.normalize(start, dim=-1))
        self.scale = scale

    def linear(self) -> tuple[Tensor, Tensor]:
        """`(weight [K, D], bias [K])` of the linear head that it is."""
        weight = self.scale * nn.functional.normalize(self.weight, dim=-1)
        return weight, weight.new_zeros(len(weight))

    def forward(self, directions: Tensor) -> Tensor:
        """Logits `[B, K]` of `[B, D]`, each of length 1."""
        return nn.functional.linear(directions, *self.linear())


BACKBONES = Registry("lt_train.backbones", BackboneSpec)  # type: ignore[type-abstract]
"""The backbones."""
