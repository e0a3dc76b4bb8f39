"""The linear head is torch.nn.Linear and draws no random numbers. Stacks are tested in test_every_head.py."""

import torch

from lt_train.methods.heads.linear import Linear


def test_it_is_torchs_linear_layer() -> None:
    weight, bias = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([10.0, 20.0])
    module = Linear().module((weight, bias))
    assert isinstance(module, torch.nn.Linear)
    assert module(torch.tensor([3.0, 4.0])).tolist() == [21.0, 16.0]


def test_construction_does_not_use_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    Linear().module((torch.zeros(3, 4), torch.zeros(3)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stacks_concatenate_the_weights_of_all_lanes() -> None:
    modules = [[Linear().module((torch.full((3, 5), float(lane)), torch.zeros(3))) for lane in range(2)]]
    stacked = Linear().stack(modules, {}, "cpu")
    weight = stacked.parameters["weight"]
    assert weight.shape == (1, 5, 2, 3)
    assert weight.flatten(2)[0, 0].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert weight.is_contiguous()


def test_its_margins_are_in_logits() -> None:
    assert Linear().logit_scale({}) == 1.0
