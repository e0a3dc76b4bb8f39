"""`resnet50` and `resnext50`: torchvision's bottleneck networks for images of some 224 pixels, trained by stage 1.

As ImageNet-LT, iNaturalist and Places-LT papers use them. For a checkpoint that others trained see `imported`.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from lt_train.backbones.base import BackboneSpec
from lt_train.backbones.imported.factory import make_model

__all__ = ["ResNeXt50", "ResNet50"]


class ResNet50(BackboneSpec):
    """ResNet-50 (He et al. 2016), 7 x 7 stem with max-pooling; D = 2048."""

    kind: Literal["resnet50"] = "resnet50"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network without its classifier, weights as torchvision initialises them, and its D."""
        return _without_classifier("resnet50", in_channels)


class ResNeXt50(BackboneSpec):
    """ResNeXt-50 32x4d (Xie et al. 2017), 7 x 7 stem with max-pooling; D = 2048."""

    kind: Literal["resnext50"] = "resnext50"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network without its classifier, weights as torchvision initialises them, and its D."""
        return _without_classifier("resnext50_32x4d", in_channels)


def _without_classifier(name: str, in_channels: int) -> tuple[nn.Module, int]:
    """The network `name` of torchvision with a stem for `in_channels` and an identity for its last layer."""
    network: Any = make_model(f"torchvision:{name}", {})
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    dim: int = network.fc.in_features
    network.fc = nn.Identity()
    return network, dim
