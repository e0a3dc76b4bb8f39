"""Distribution alignment: factor and offset a class under a confidence gate. Stacking: see test_every_head.py."""

import math

import pytest
import torch

from lt_train.methods.heads.disalign import DistributionAlignment

START = (torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([10.0, 20.0]))


def test_by_hand() -> None:
    module = DistributionAlignment().module(START)
    features = torch.tensor([3.0, 4.0])
    assert module(features).tolist() == [21.0, 16.0], "it starts as the classifier"
    with torch.no_grad():
        module.get_parameter("alpha").copy_(torch.tensor([2.0, 0.5]))
        module.get_parameter("beta").copy_(torch.tensor([-1.0, 4.0]))
        module.get_parameter("gate").copy_(torch.tensor([0.0, 0.25]))
        module.get_parameter("gate_bias").fill_(math.log(3) - 1)
    # The gate is sigmoid(log 3) = 3/4; aligned logits are 41 and 12.
    assert module(features).tolist() == pytest.approx([0.75 * 41 + 0.25 * 21, 0.75 * 12 + 0.25 * 16])


def test_the_classifier_is_not_trained() -> None:
    module = DistributionAlignment().module(START)
    assert [name for name, _ in module.named_parameters()] == ["alpha", "beta", "gate", "gate_bias"]
    assert set(module.state_dict()) == {"alpha", "beta", "gate", "gate_bias", "weight", "bias"}


def test_the_gate_has_a_gradient_from_the_first_step_that_moves_a_factor() -> None:
    """While alpha = 1 and beta = 0 the gate mixes equals; it must not stay stuck there."""
    module = DistributionAlignment().module(START)
    features, target = torch.tensor([[3.0, 4.0]]), torch.tensor([1])
    for moved in (False, True):
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(module(features), target), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
        assert bool(module.get_parameter("gate").detach().any()) == moved
