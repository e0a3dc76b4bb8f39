"""Operations counted by hand, and the published figure of ResNet-50."""

from __future__ import annotations

import pytest
from torch import nn

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.layers import forward_flops


def test_a_convolution_by_hand() -> None:
    assert forward_flops(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12)) == 2 * 3 * 8 * 9 * 10 * 12


def test_resnet50_has_the_published_four_billion_multiply_adds() -> None:
    network, _ = BACKBONES.parse({"kind": "resnet50"}).build(3)
    assert forward_flops(network, (3, 224, 224)) / 2 == pytest.approx(4.09e9, rel=0.01)
