"""The stacked optimiser is one torch.optim.SGD a lane."""

import pytest
import torch
from torch import Tensor, nn

from lt_train.heads.linear import LinearHead
from lt_train.retrain.fused import _StackedSGD

SEEDS, BATCH, LANES, CLASSES, DIM = 2, 5, 3, 4, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lane_tensor(values: list[list[float]]) -> Tensor:
    """`[S, 1, T]`, as the engine gives it."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


@pytest.mark.parametrize(
    "momentum",
    [[[0.9] * 3] * 2, [[0.0] * 3] * 2, [[0.9, 0.5, 0.0], [0.1, 0.99, 0.9]]],
    ids=["shared", "none", "own"],
)
@pytest.mark.parametrize(
    "weight_decay", [[[0.0] * 3] * 2, [[0.0, 0.1, 0.3], [0.2, 0.0, 1.0]]], ids=["no decay", "own decay"]
)
def test_a_few_steps_are_torchs(momentum: list[list[float]], weight_decay: list[list[float]]) -> None:
    rates = [[0.1, 0.02, 0.5], [0.3, 0.01, 0.2]]
    singles = [[nn.Linear(DIM, CLASSES, dtype=torch.float64) for _ in range(LANES)] for _ in range(SEEDS)]
    head = LinearHead.stack([[(one.weight.data, one.bias.data) for one in lanes] for lanes in singles], "cpu")
    lanes = {"lr": lane_tensor(rates), "momentum": lane_tensor(momentum), "weight_decay": lane_tensor(weight_decay)}
    stacked = _StackedSGD(head, lanes)
    optimizers = [
        [
            torch.optim.SGD(one.parameters(), rates[s][t], momentum[s][t], weight_decay=weight_decay[s][t])
            for t, one in enumerate(lanes_)
        ]
        for s, lanes_ in enumerate(singles)
    ]
    for step in range(6):
        size = BATCH - step % 2  # the last batch of an epoch may be short
        features, grad = draw(SEEDS, size, DIM, seed=step), draw(SEEDS, size, LANES, CLASSES, seed=50 + step)
        factor = 1.0 - 0.1 * step
        stacked.rate = lanes["lr"].unsqueeze(-1) * factor
        stacked.step(features, grad)
        for s in range(SEEDS):
            for t in range(LANES):
                optimizer = optimizers[s][t]
                optimizer.param_groups[0]["lr"] = rates[s][t] * factor
                optimizer.zero_grad()
                (singles[s][t](features[s]) * grad[s, :, t]).sum(dim=1).mean().backward()
                optimizer.step()
                weight, bias = head.unstack(s, t)
                torch.testing.assert_close(weight, singles[s][t].weight.data)
                torch.testing.assert_close(bias, singles[s][t].bias.data)
