"""The small network, and properties of every backbone kind."""

import pytest
import torch

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.layers import Classifier


def test_kinds_are_found() -> None:
    assert {"small_cnn", "resnet32", "resnet34"} <= set(BACKBONES.kinds())


@pytest.mark.parametrize("kind", list(BACKBONES.kinds()))
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_features_have_the_stated_dimension_and_gradients_reach_every_parameter(
    kind: str, channels: int, size: int
) -> None:
    required = {name: field for name, field in BACKBONES.kinds()[kind].model_fields.items() if field.is_required()}
    given = {name: (field.examples or [None])[0] for name, field in required.items()}
    network = Classifier(BACKBONES.parse({"kind": kind} | given), channels, 7)
    images = torch.randn(2, channels, size, size)
    assert network.backbone(images).shape == (2, network.feature_dim)
    network(images).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_width_sets_the_dimension() -> None:
    assert Classifier(BACKBONES.parse({"kind": "small_cnn", "width": 5}), 1, 2).feature_dim == 20
