"""The interface of a backbone: a frozen spec that builds a network from images to features.

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

from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.registry import KindSpec, Registry

__all__ = ["BACKBONES", "BackboneSpec", "Classifier", "FrozenBackbone", "L2Normalize"]


@dataclass(frozen=True)
class FrozenBackbone:
    """A trained network that computes features, on the CPU in evaluation mode, and the classifier it was trained with.

    Attributes:
        network: `[B, C, H, W] -> [B, D]`.
        feature_dim: D.
        head: the classifier `(weight [K, D], bias [K])` to start re-training from; None if there is none.
        in_channels: number of channels that images must have.
        mean, std: normalisation of its images per channel, on the 0..1 scale; None: unknown.
        identity: what determines its features, as JSON: `backbone`, and `checkpoint` (sha256 of the file).
        display_name: its name in error messages.
        remedy: what to do if it does not fit a dataset, for error messages.
        notes: messages for the user about how it was read.
        record: how it was trained, as JSON: those of `recipe`, `seed`, `accuracy` and `curve` that the checkpoint has.
    """

    network: nn.Module
    feature_dim: int
    head: tuple[Tensor, Tensor] | None
    in_channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    identity: dict[str, Any]
    display_name: str
    remedy: str
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


class BackboneSpec(KindSpec):
    """Base of every backbone kind.

    `checkpoint` names the weights that a sweep starts from; `build` ignores it.
    """

    checkpoint: Annotated[
        str | None,
        PATH,
        NOT_IDENTITY,
        Field(description="safetensors file written by `lt-train backbone`; null: train one with the stage-1 recipe"),
    ] = None

    @abstractmethod
    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """A newly initialised network `[B, C, H, W] -> [B, D]` and its D."""

    def read_checkpoint(self, image_shape: tuple[int, int, int]) -> FrozenBackbone | None:
        """The network with the weights of `checkpoint`, for kinds that read checkpoints of other tools.

        Args:
            image_shape: `(C, H, W)` of the images to process.

        Returns:
            None if `checkpoint` was written by `lt-train backbone`, which is the default.

        Raises:
            UserError: as documented by the kind.
        """
        return None


class Classifier(nn.Module):
    """A backbone and the stage-1 head on top of it: `[B, C, H, W] -> logits [B, K]`.

    The head is linear or, with `cosine_scale`, LDAM's normalised head. In the latter case the backbone's features, and
    thus those of a feature bank, are normalised to length 1.
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
        """The head as a linear classifier `(weight [K, D], bias [K])`, from which re-training starts."""
        if isinstance(self.head, NormalisedHead):
            weight, bias = self.head.linear()
        else:
            weight, bias = self.head.weight, self.head.bias
        return weight.detach(), bias.detach()


class L2Normalize(nn.Module):
    """Scale features to length 1: `f / |f|`; zero features stay zero."""

    def forward(self, features: Tensor) -> Tensor:
        """`[B, D] -> [B, D]`."""
        return nn.functional.normalize(features, dim=-1)


class NormalisedHead(nn.Module):
    """`s cos(W_k, f)` of features of length 1, without a bias (Cao et al. 2019, code: NormedLinear).

    It is equal to, and computed as, the linear head with rows `s W_k / |W_k|` and bias 0.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        start = torch.empty(num_classes, feature_dim).uniform_(-1, 1)
        self.weight = nn.Parameter(nn.functional.normalize(start, dim=-1))
        self.scale = scale

    def linear(self) -> tuple[Tensor, Tensor]:
        """`(weight [K, D], bias [K])` of the equivalent linear head."""
        weight = self.scale * nn.functional.normalize(self.weight, dim=-1)
        return weight, weight.new_zeros(len(weight))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, K]` of features `[B, D]` of length 1."""
        return nn.functional.linear(features, *self.linear())


BACKBONES = Registry("lt_train.backbones", BackboneSpec, modules=["resnet", "small_cnn", "imported.backbone"])  # type: ignore[type-abstract]
"""The backbones."""
