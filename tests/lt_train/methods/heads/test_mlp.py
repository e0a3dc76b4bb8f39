"""The head with a hidden layer. Stacks are tested in test_every_head.py."""

import pytest
import torch
from support.banks import make_bank
from support.engines import distance, kept, lone_run, predict

from lt_train.methods.heads.mlp import MLP
from lt_train.retrain import fused

START = (torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([5.0, 6.0]))


def test_by_hand() -> None:
    module = MLP(hidden=2).module(START)
    values = {"hidden_weight": [[1.0, 0.0], [0.0, -1.0]], "hidden_bias": [0.5, 1.0], "out": [[2.0, 7.0], [-1.0, 7.0]]}
    module.load_state_dict({name: torch.tensor(value) for name, value in values.items()}, strict=False)
    # W f + b = (5 + 3 + 8, 6 - 4) for f = (1, 2); the hidden units are relu(1.5) and relu(-1).
    assert module(torch.tensor([1.0, 2.0])).tolist() == pytest.approx([16.0 + 2.0 * 1.5, 2.0 - 1.5])


def test_the_hidden_layer_is_drawn_from_the_seed() -> None:
    one, again, other = (MLP().module(START, seed).state_dict()["hidden_weight"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert 0.6 < float(one.abs().max()) <= 2**-0.5, "uniform in +-1/sqrt(D)"


def test_the_hidden_layer_learns() -> None:
    """A head without hidden units that move would still learn through its linear part."""
    bank, runs = (
        make_bank(),
        [lone_run({"kind": "ce", "lr": 0.05, "head": head}, epochs=5) for head in ("mlp", "linear")],
    )
    results = [kept(result) for result in fused.fit(bank, runs)]
    start = MLP().module((torch.zeros(6, 8), torch.zeros(6)), 0).state_dict()
    for name in ("hidden_weight", "hidden_bias", "out"):
        assert distance(results[0].state[name], start[name].numpy()) > 0.01, name
    assert distance(*(predict(bank, run, head) for run, head in zip(runs, results, strict=True))) > 0.01
