"""`resnet32` and `resnet34`: the residual networks of the long-tailed CIFAR literature.

ResNet-32 is He et al.'s CIFAR form as LDAM uses it; ResNet-34 is the ImageNet form with a stem for small images as
LTWB (and the paper) uses it. Both take images of 16 x 16 pixels and more.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lt_train.backbones.base import BackboneSpec

__all__ = ["BasicBlock", "ResNet32", "ResNet34"]


class ResNet32(BackboneSpec):
    """Three stages of five basic blocks, widths 16, 32, 64, parameter-free shortcuts (option A); D = 64."""

    kind: Literal["resnet32"] = "resnet32"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network and its D; weights by He initialisation, as LDAM's code."""
        network = _network(in_channels, widths=(16, 32, 64), depths=(5, 5, 5), projected=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return network, 64


class ResNet34(BackboneSpec):
    """Stages of 3, 4, 6, 3 basic blocks, widths 64 to 512, 3 x 3 stem without max-pooling; D = 512."""

    kind: Literal["resnet34"] = "resnet34"

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The network and its D; weights as torch initialises convolutions."""
        return _network(in_channels, widths=(64, 128, 256, 512), depths=(3, 4, 6, 3), projected=True), 512


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut (He et al. 2016, Fig. 2).

    Where the shape changes, the shortcut is a 1 x 1 convolution with batch norm (`projected`, option B), or every
    second pixel with the new channels zero on both sides (option A).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.added = stride, out_channels - in_channels
        self.projection: nn.Module | None = None
        if projected and (stride != 1 or self.added):
            self.projection = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """`[B, in, H, W] -> [B, out, H/stride, W/stride]`."""
        outputs = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(inputs)))))
        if self.projection is not None:
            shortcut = self.projection(inputs)
        elif self.added or self.stride != 1:
            before = self.added // 2
            thinned = inputs[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(thinned, (0, 0, 0, 0, before, self.added - before))
        else:
            shortcut = inputs
        return torch.relu(outputs + shortcut)


def _network(in_channels: int, widths: tuple[int, ...], depths: tuple[int, ...], projected: bool) -> nn.Sequential:
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
