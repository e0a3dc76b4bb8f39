"""What a backbone is: a frozen spec that builds a network from pictures to features.

A backbone family is one file in this folder with one `BackboneSpec` subclass a kind. It knows torch only.
Shapes: B pictures, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from lt_train.registry import KindSpec, kinds, parse, union

__all__ = ["BackboneSpec", "Classifier", "backbone_kinds", "backbone_union", "parse_backbone"]


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


class Classifier(nn.Module):
    """A backbone and the stage-1 linear head on top of it: `[B, C, H, W] -> logits [B, K]`."""

    def __init__(self, spec: BackboneSpec, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.backbone, self.feature_dim = spec.build(in_channels)
        self.head = nn.Linear(self.feature_dim, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised pictures `[B, C, H, W]`."""
        logits: Tensor = self.head(self.backbone(pictures))
        return logits


def backbone_kinds() -> dict[str, type[BackboneSpec]]:
    """Every backbone kind by name."""
    return kinds("lt_train.backbones", BackboneSpec)


def backbone_union() -> Any:
    """The discriminated union over every backbone kind, for specs."""
    return union("lt_train.backbones", BackboneSpec)  # type: ignore[type-abstract]


def parse_backbone(document: dict[str, Any]) -> BackboneSpec:
    """A backbone spec from a plain mapping; SpecError names every problem."""
    return parse("lt_train.backbones", BackboneSpec, document)  # type: ignore[type-abstract]
