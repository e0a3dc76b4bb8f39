"""Convolutional networks: shapes, parameters, initialisation, and their number of operations."""

import pytest
import torch
from torch import nn

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.layers import BasicBlock, Classifier, forward_flops
from lt_train.testing import check_backbone


def test_kinds_are_found() -> None:
    assert {"small_cnn", "resnet32", "resnet34"} <= set(BACKBONES.kinds())


@pytest.mark.parametrize("kind", list(BACKBONES.kinds()))
def test_they_conform(kind: str) -> None:
    required = {name: field for name, field in BACKBONES.kinds()[kind].model_fields.items() if field.is_required()}
    given = {name: (field.examples or [None])[0] for name, field in required.items()}
    backbone = BACKBONES.parse({"kind": kind} | given)
    check_backbone(backbone, channels=(1,), size=16)
    check_backbone(backbone, channels=(3,))


def test_width_sets_the_dimension() -> None:
    assert Classifier(BACKBONES.parse({"kind": "small_cnn", "width": 5}), 1, 2).feature_dim == 20


@pytest.mark.parametrize(
    ("kind", "classes", "dim", "parameters"),
    # He et al. 2016, Table 6: ResNet-32 has 0.46 M (464,154 with 10 classes); ResNet-34 is torchvision's 21,797,672
    # less its 1000-class head (513,000), its 7 x 7 stem (9,408), plus a 3 x 3 stem (1,728) and a 10-class head (5,130).
    # The others are in torchvision's documentation.
    [
        ("resnet32", 10, 64, 464_154),
        ("resnet34", 10, 512, 21_282_122),
        ("resnet50", 1000, 2048, 25_557_032),
        ("resnext50", 1000, 2048, 25_028_904),
    ],
)
def test_sizes_are_the_published_ones(kind: str, classes: int, dim: int, parameters: int) -> None:
    network = Classifier(BACKBONES.parse({"kind": kind}), 3, classes)
    assert network.feature_dim == dim
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_a_stem_for_small_images_keeps_their_size() -> None:
    network = Classifier(BACKBONES.parse({"kind": "resnet34"}), 3, 10).eval()
    maps = network.backbone[:-2](torch.zeros(1, 3, 32, 32))  # type: ignore[index]
    assert maps.shape == (1, 512, 4, 4)


def test_the_parameter_free_shortcut_takes_every_second_pixel_and_pads_channels() -> None:
    block = BasicBlock(4, 8, stride=2, projected=False).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    inputs = torch.rand(1, 4, 6, 6)
    outputs = block(inputs)
    assert torch.equal(outputs[:, 2:6], inputs[:, :, ::2, ::2])
    assert not outputs[:, :2].any()
    assert not outputs[:, 6:].any()


def test_the_stem_has_the_channels_of_the_images() -> None:
    network = Classifier(BACKBONES.parse({"kind": "resnet50"}), 1, 4).eval()
    weight = network.backbone.get_parameter("conv1.weight").detach()
    assert weight.shape == (64, 1, 7, 7)
    assert float(weight.std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)  # by fan out, as in torchvision
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


def test_a_convolution_by_hand() -> None:
    assert forward_flops(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12)) == 2 * 3 * 8 * 9 * 10 * 12


def test_resnet50_has_the_published_four_billion_multiply_adds() -> None:
    network, _ = BACKBONES.parse({"kind": "resnet50"}).build(3)
    assert forward_flops(network, (3, 224, 224)) / 2 == pytest.approx(4.09e9, rel=0.01)
