"""Heads that re-scale the frozen classifier: LWS and DisAlign. Stacks are tested in test_every_head.py."""

import math

import pytest
import torch

from lt_train.methods.heads.rescaled import LWS, DisAlign

START = (torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([10.0, 20.0]))


def test_lws_by_hand() -> None:
    module = LWS().module(START)
    features = torch.tensor([3.0, 4.0])
    assert module(features).tolist() == [21.0, 16.0]
    with torch.no_grad():
        module.get_parameter("scale").copy_(torch.tensor([2.0, -0.5]))
    assert module(features).tolist() == [42.0, -8.0]


def test_lws_trains_factors_only() -> None:
    module = LWS().module(START)
    assert [name for name, _ in module.named_parameters()] == ["scale"]
    assert set(module.state_dict()) == {"scale", "weight", "bias"}


def test_lws_lanes_share_the_frozen_logits() -> None:
    spec = LWS()
    inputs = spec.inputs(torch.tensor([[[3.0, 4.0]]]), START)
    assert inputs.tolist() == [[[21.0, 16.0]]]
    stacked = spec.stack([[spec.module(START) for _ in range(4)]], {}, "cpu")
    assert {name: tuple(tensor.shape) for name, tensor in stacked.parameters.items()} == {"scale": (1, 1, 4, 2)}


DISALIGN_START = (torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([10.0, 20.0]))


def test_disalign_by_hand() -> None:
    module = DisAlign().module(DISALIGN_START)
    features = torch.tensor([3.0, 4.0])
    assert module(features).tolist() == [21.0, 16.0], "it starts as the classifier"
    with torch.no_grad():
        module.get_parameter("alpha").copy_(torch.tensor([2.0, 0.5]))
        module.get_parameter("beta").copy_(torch.tensor([-1.0, 4.0]))
        module.get_parameter("gate").copy_(torch.tensor([0.0, 0.25]))
        module.get_parameter("gate_bias").fill_(math.log(3) - 1)
    # The gate is sigmoid(log 3) = 3/4; aligned logits are 41 and 12.
    assert module(features).tolist() == pytest.approx([0.75 * 41 + 0.25 * 21, 0.75 * 12 + 0.25 * 16])


def test_disalign_does_not_train_the_classifier() -> None:
    module = DisAlign().module(DISALIGN_START)
    assert [name for name, _ in module.named_parameters()] == ["alpha", "beta", "gate", "gate_bias"]
    assert set(module.state_dict()) == {"alpha", "beta", "gate", "gate_bias", "weight", "bias"}


def test_disalign_gate_has_a_gradient_after_the_first_step() -> None:
    """At alpha = 1 and beta = 0 the gate has no effect and no gradient; one step must change that."""
    module = DisAlign().module(DISALIGN_START)
    features, target = torch.tensor([[3.0, 4.0]]), torch.tensor([1])
    for moved in (False, True):
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(module(features), target), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
        assert bool(module.get_parameter("gate").detach().any()) == moved
