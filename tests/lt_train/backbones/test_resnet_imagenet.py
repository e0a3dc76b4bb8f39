"""The published sizes of both ImageNet networks, and a stem for images that are not RGB."""

import pytest
import torch

from lt_train.backbones.base import BACKBONES, Classifier


@pytest.mark.parametrize(
    ("kind", "parameters"),
    # torchvision's documentation: 25,557,032 and 25,028,904 with 1000 classes.
    [("resnet50", 25_557_032), ("resnext50", 25_028_904)],
)
def test_sizes_are_the_published_ones(kind: str, parameters: int) -> None:
    network = Classifier(BACKBONES.parse({"kind": kind}), 3, 1000)
    assert network.feature_dim == 2048
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_stem_takes_the_channels_that_there_are() -> None:
    network = Classifier(BACKBONES.parse({"kind": "resnet50"}), 1, 4).eval()
    weight = network.backbone.get_parameter("conv1.weight").detach()
    assert weight.shape == (64, 1, 7, 7)
    assert float(weight.std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)  # by fan out, as torchvision's
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
