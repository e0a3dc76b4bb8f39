"""`small_cnn`: a small convolutional network for images from 8 x 8 grey to 32 x 32 RGB, trained on a CPU in seconds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lt_train.backbones.base import BackboneSpec
from lt_train.core.lazy import nn

__all__ = ["SmallCnn"]


class SmallCnn(BackboneSpec):
    """Four conv-BN-ReLU blocks, the middle two with stride 2, and a global average; D = 4 * width."""

    kind: Literal["small_cnn"] = "small_cnn"
    width: Annotated[int, Field(ge=1, description="channels of the first block, >= 1; D is four times as many")] = 32

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network and its D."""
        width = self.width
        network = nn.Sequential(
            *_block(in_channels, width, stride=1),
            *_block(width, 2 * width, stride=2),
            *_block(2 * width, 4 * width, stride=2),
            *_block(4 * width, 4 * width, stride=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return network, 4 * width


def _block(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
