"""The published sizes of both residual networks, and the two shortcuts."""

import pytest
import torch

from lt_train.backbones.base import BACKBONES, Classifier
from lt_train.backbones.resnet_cifar import BasicBlock


@pytest.mark.parametrize(
    ("kind", "dim", "parameters"),
    # He et al. 2016, Table 6: ResNet-32 has 0.46 M (464,154 with 10 classes); ResNet-34 is torchvision's 21,797,672
    # less its 1000-class head (513,000), its 7 x 7 stem (9,408), plus a 3 x 3 stem (1,728) and a 10-class head (5,130).
    [("resnet32", 64, 464_154), ("resnet34", 512, 21_282_122)],
)
def test_sizes_are_the_published_ones(kind: str, dim: int, parameters: int) -> None:
    network = Classifier(BACKBONES.parse({"kind": kind}), 3, 10)
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
