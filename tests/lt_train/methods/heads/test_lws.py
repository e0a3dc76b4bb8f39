"""Learnable weight scaling trains K factors and nothing else. Stacking: see test_every_head.py."""

import torch

from lt_train.methods.heads.lws import LearnableWeightScaling

START = (torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([10.0, 20.0]))


def test_by_hand() -> None:
    module = LearnableWeightScaling().module(START)
    features = torch.tensor([3.0, 4.0])
    assert module(features).tolist() == [21.0, 16.0]
    with torch.no_grad():
        module.get_parameter("scale").copy_(torch.tensor([2.0, -0.5]))
    assert module(features).tolist() == [42.0, -8.0]


def test_factors_alone_are_trained() -> None:
    module = LearnableWeightScaling().module(START)
    assert [name for name, _ in module.named_parameters()] == ["scale"]
    assert set(module.state_dict()) == {"scale", "weight", "bias"}


def test_lanes_share_the_frozen_classifiers_logits() -> None:
    spec = LearnableWeightScaling()
    inputs = spec.inputs(torch.tensor([[[3.0, 4.0]]]), START)
    assert inputs.tolist() == [[[21.0, 16.0]]]
    stacked = spec.stack([[spec.module(START) for _ in range(4)]], {}, "cpu")
    assert {name: tuple(tensor.shape) for name, tensor in stacked.parameters.items()} == {"scale": (1, 1, 4, 2)}
