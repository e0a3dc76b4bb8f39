"""The stacked linear head is many torch.nn.Linear, and its hand-written gradients are autograd's."""

import pytest
import torch
from torch import Tensor

from lt_train.heads.linear import LinearHead

SEEDS, BATCH, LANES, CLASSES, DIM = 2, 5, 3, 4, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def single_heads() -> list[list[tuple[Tensor, Tensor]]]:
    return [
        [(draw(CLASSES, DIM, seed=10 * s + t), draw(CLASSES, seed=99 - 10 * s - t)) for t in range(LANES)]
        for s in range(SEEDS)
    ]


def test_stacking_and_unstacking_gives_every_lane_back() -> None:
    singles = single_heads()
    head = LinearHead.stack(singles, "cpu")
    assert head.parameters["weight"].shape == (SEEDS, DIM, LANES, CLASSES)
    assert head.parameters["bias"].shape == (SEEDS, 1, LANES, CLASSES)
    for s in range(SEEDS):
        for t in range(LANES):
            weight, bias = head.unstack(s, t)
            assert torch.equal(weight, singles[s][t][0])
            assert torch.equal(bias, singles[s][t][1])
            weight.zero_(), bias.zero_()
            assert torch.equal(head.unstack(s, t)[0], singles[s][t][0]), "a copy was asked for"
            assert torch.equal(head.unstack(s, t)[1], singles[s][t][1]), "a copy was asked for"


def test_logits_are_those_of_every_lane_alone() -> None:
    singles, features = single_heads(), draw(SEEDS, BATCH, DIM, seed=3)
    logits = LinearHead.stack(singles, "cpu").logits(features)
    assert logits.shape == (SEEDS, BATCH, LANES, CLASSES)
    for s in range(SEEDS):
        for t in range(LANES):
            torch.testing.assert_close(logits[s, :, t], torch.nn.functional.linear(features[s], *singles[s][t]))


@pytest.mark.parametrize(("keep", "scale"), [(0.0, 1.0), (0.9, 0.2), (1.0, 1 / BATCH)])
def test_accumulated_gradients_are_autograds(keep: float, scale: float) -> None:
    head = LinearHead.stack(single_heads(), "cpu")
    features, grad = draw(SEEDS, BATCH, DIM, seed=3), draw(SEEDS, BATCH, LANES, CLASSES, seed=4)
    into = {name: draw(*tensor.shape, seed=5) for name, tensor in head.parameters.items()}
    before = {name: tensor.clone() for name, tensor in into.items()}
    for tensor in head.parameters.values():
        tensor.requires_grad_()
    wanted = torch.autograd.grad((head.logits(features) * grad).sum(), list(head.parameters.values()))
    with torch.no_grad():
        head.accumulate(into, features, grad, keep=keep, scale=scale)
    for name, gradient in zip(head.parameters, wanted, strict=True):
        torch.testing.assert_close(into[name], keep * before[name] + scale * gradient)


def test_mean_features_have_the_mean_of_the_logits() -> None:
    views = draw(2, 7, DIM)
    head = LinearHead.stack(single_heads()[:1], "cpu")
    mean = torch.stack([head.logits(view[None]) for view in views]).mean(dim=0)
    torch.testing.assert_close(head.logits(LinearHead.evaluation_features(views)[None]), mean)
