"""Torch modules: the stage-1 classifier, its layers and the block of residual networks; the operations of a network.

Shapes: B images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from lt_train.backbones.base import BackboneSpec

__all__ = ["BasicBlock", "Classifier", "L2Normalize", "forward_flops"]


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


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut (He et al. 2016, Fig. 2).

    Where the shape changes, the shortcut is a 1 x 1 convolution with batch norm (`projected`, option B), or every
    second pixel, zero-padded to the new number of channels on both sides (option A).
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
            subsampled = inputs[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(subsampled, (0, 0, 0, 0, before, self.added - before))
        else:
            shortcut = inputs
        return torch.relu(outputs + shortcut)


def forward_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of the forward pass of one image `(C, H, W)`, two per multiply-add.

    Only convolutions and matrix products are counted. The network is moved to the device `meta`, which discards its
    weights.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval().to("meta")(torch.empty(1, *image_shape, device="meta"))
    return int(counter.get_total_flops())
