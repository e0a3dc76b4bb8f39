"""Convolutional networks: `small_cnn`, and the residual networks `resnet32`, `resnet34`, `resnet50` and `resnext50`.

`small_cnn`, for images from 8 x 8 grey to 32 x 32 RGB, trains on a CPU in seconds. ResNet-32 is He et al.'s CIFAR form
as used by LDAM; ResNet-34 is the ImageNet form with a stem for small images as used by LTWB and the paper. Both take
images of at least 16 x 16 pixels. ResNet-50 and ResNeXt-50 are torchvision's, for images of about 224 pixels, as
ImageNet-LT, iNaturalist and Places-LT papers use them. To use a checkpoint trained elsewhere, see
`backbones.imported`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lt_train.backbones.base import BACKBONES, BackboneSpec
from lt_train.backbones.imported import make_model
from lt_train.core.imports import nn

__all__ = ["ResNeXt50", "ResNet32", "ResNet34", "ResNet50", "SmallCnn"]


@BACKBONES.register
class SmallCnn(BackboneSpec):
    """Four conv-BN-ReLU blocks, the middle two with stride 2, and a global average; D = 4 * width."""

    kind: Literal["small_cnn"] = "small_cnn"
    width: Annotated[int, Field(ge=1, description="channels of the first block, >= 1; D is four times as many")] = 32

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network and its D."""
        width = self.width
        network = nn.Sequential(
            *_conv_block(in_channels, width, stride=1),
            *_conv_block(width, 2 * width, stride=2),
            *_conv_block(2 * width, 4 * width, stride=2),
            *_conv_block(4 * width, 4 * width, stride=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return network, 4 * width


def _conv_block(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


@BACKBONES.register
class ResNet32(BackboneSpec):
    """Three stages of five basic blocks, widths 16, 32, 64, parameter-free shortcuts (option A); D = 64."""

    kind: Literal["resnet32"] = "resnet32"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network and its D, with He initialisation as in LDAM's code."""
        network = _small_image_resnet(in_channels, widths=(16, 32, 64), depths=(5, 5, 5), projected=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return network, 64


@BACKBONES.register
class ResNet34(BackboneSpec):
    """Stages of 3, 4, 6, 3 basic blocks, widths 64 to 512, 3 x 3 stem without max-pooling; D = 512."""

    kind: Literal["resnet34"] = "resnet34"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network and its D, with torch's initialisation of convolutions."""
        return _small_image_resnet(in_channels, widths=(64, 128, 256, 512), depths=(3, 4, 6, 3), projected=True), 512


@BACKBONES.register
class ResNet50(BackboneSpec):
    """ResNet-50 (He et al. 2016), 7 x 7 stem with max-pooling; D = 2048."""

    kind: Literal["resnet50"] = "resnet50"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network without its classifier, with torchvision's initialisation, and its D."""
        return _torchvision_network("resnet50", in_channels)


@BACKBONES.register
class ResNeXt50(BackboneSpec):
    """ResNeXt-50 32x4d (Xie et al. 2017), 7 x 7 stem with max-pooling; D = 2048."""

    kind: Literal["resnext50"] = "resnext50"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network without its classifier, with torchvision's initialisation, and its D."""
        return _torchvision_network("resnext50_32x4d", in_channels)


def _small_image_resnet(
    in_channels: int, widths: tuple[int, ...], depths: tuple[int, ...], projected: bool
) -> nn.Sequential:
    from lt_train.backbones.layers import BasicBlock

    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    channels = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(channels, width, stride, projected))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _torchvision_network(name: str, in_channels: int) -> tuple[nn.Module, int]:
    """The torchvision network `name` with a stem for `in_channels` and an identity as last layer, and its D."""
    network: Any = make_model(f"torchvision:{name}", {})
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision
    dim: int = network.fc.in_features
    network.fc = nn.Identity()
    return network, dim
