"""The steps of a stack are those of one torch.optim.SGD per run, and lanes move between stacks unchanged."""

from collections.abc import Sequence

import pytest
import torch
from support.banks import make_bank
from support.compositions import TRAINED
from support.engines import lone_run, make_runs

from lt_train.core.fields import substitute
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import Run, learning_rate_factor, start_head
from lt_train.retrain.stack import DeviceBank, Stack

BANK = make_bank((20, 9, 4, 1), dim=5, views=1, test_images=40)
SEEDS, LANES = (3, 8), 3


def runs_of(method: dict[str, object], momentum: Sequence[float], weight_decay: Sequence[float]) -> list[Run]:
    """Two seeds of three lanes, one seed after the other, each with its own rate."""
    runs = []
    for index in range(len(SEEDS) * LANES):
        one = METHODS.parse({**method, "lr": (0.01, 0.002, 0.05, 0.03, 0.001, 0.02)[index]})
        one = substitute(one, {"momentum": momentum[index]})
        runs.append(
            Run(
                substitute(one, {"weight_decay": weight_decay[index]}),
                TrainingSpec(epochs=4, batch_size=8),
                SEEDS[index // LANES],
            )
        )
    return runs


def stack_of(runs: list[Run]) -> Stack:
    return Stack(DeviceBank(BANK, "cpu"), runs, [range(LANES), range(LANES, 2 * LANES)])


@pytest.mark.parametrize(
    "momentum",
    [[0.9] * 6, [0.0] * 6, [0.9, 0.5, 0.0, 0.1, 0.99, 0.9]],
    ids=["shared momentum", "no momentum", "own momentum"],
)
@pytest.mark.parametrize(
    "weight_decay", [[0.0] * 6, [0.1] * 6, [0.0, 0.1, 0.3, 0.2, 0.0, 1.0]], ids=["no decay", "one decay", "own decay"]
)
@pytest.mark.parametrize("head", ["linear", "cosine", "lws", "disalign", "mlp"])
def test_steps_are_torchs_sgd(momentum: list[float], weight_decay: list[float], head: str) -> None:
    """Four epochs, so that the rate changes while momentum is nonzero; the last batch of each is short."""
    runs = runs_of({"kind": "los", "head": head}, momentum, weight_decay)
    stack = stack_of(runs)
    losses = torch.stack([stack.train_epoch() for _ in range(4)])
    for index, run in enumerate(runs):
        module = run.method.head.module(start_head(BANK, run), run.seed)
        optimizer = torch.optim.SGD(
            module.parameters(), run.method.lr, momentum[index], weight_decay=weight_decay[index]
        )
        loss_of = run.method.loss(
            {name: torch.tensor(value) for name, value in run.method.lane_values().items()}, BANK.class_counts
        )
        for epoch in range(4):
            optimizer.param_groups[0]["lr"] = run.method.lr * learning_rate_factor(epoch, 4)
            total = 0.0
            for batch in run.method.sampler.order(BANK.train_labels, run.seed, epoch).split(8):
                loss = loss_of(module(BANK.train_features[0, batch]), BANK.train_labels[batch])
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
                total += float(loss.detach().sum())
            assert float(losses[epoch, index // LANES, index % LANES]) == pytest.approx(total / 34, rel=1e-4)
        state = stack.state(index // LANES, index % LANES)
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TRAINED)
def test_the_first_step_is_the_gradient(kind: str) -> None:
    """One batch of all images from the start: the step divided by the rate is autograd's gradient."""
    run = lone_run({"kind": kind, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0}, batch_size=50)
    free = run.method.model_copy(update={"constraint": None})  # a projection is not part of the gradient
    run = Run(free, run.training, run.seed)
    stack = Stack(DeviceBank(BANK, "cpu"), [run], [[0]])
    stack.train_epoch()
    module = free.head.module(start_head(BANK, run), run.seed)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    lanes = {name: torch.tensor(value) for name, value in free.lane_values().items()}
    order = free.sampler.order(BANK.train_labels, run.seed, 0)
    loss = free.loss(lanes, BANK.class_counts)(module(BANK.train_features[0, order]), BANK.train_labels[order])
    loss.mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        moved = (before[name] - stack.state(0, 0)[name]) / 0.01
        scale = max(float(parameter.grad.norm()), 1e-3)
        assert float((moved - parameter.grad).norm()) <= 1e-3 * scale, name


@pytest.mark.parametrize("head", ["linear", "cosine", "lws", "disalign", "mlp"])
def test_lanes_that_move_to_another_stack_continue_unchanged(head: str) -> None:
    """Weights, momentum, its scale, selected heads and failures are carried over."""
    momentum, decay = [0.9, 0.5, 0.3, 0.1, 0.8, 0.9], [0.0, 0.1, 0.3, 0.2, 0.0, 0.1]
    runs = runs_of({"kind": "los", "head": head}, momentum, decay)
    data = DeviceBank(BANK, "cpu")
    stays, leaves = stack_of(runs), stack_of(runs)
    chosen = torch.tensor([[True, False, True], [False, True, False]])
    for stack in (stays, leaves):
        stack.train_epoch()
        stack.select(torch.ones_like(chosen))
        stack.train_epoch()
        stack.select(chosen)
    leaves.finite_ST = chosen.clone()
    fewer = Stack(data, runs, [[1, 2], [3, 5]])
    fewer.take_over({index: (leaves, index // LANES, index % LANES) for index in range(6)})
    assert (fewer.finished, fewer.epochs) == (2, 4)
    stays.train_epoch(), fewer.train_epoch()
    assert fewer.finite_ST.tolist() == [[False, True], [False, False]]
    old = {1: (0, 1), 2: (0, 2), 3: (1, 0), 5: (1, 2)}
    for (s, t), index in zip([(0, 0), (0, 1), (1, 0), (1, 1)], (1, 2, 3, 5), strict=True):
        for name, tensor in stays.state(*old[index]).items():
            torch.testing.assert_close(fewer.state(s, t)[name], tensor, rtol=1e-5, atol=5e-6)
    stays.measure(), fewer.measure()  # replaces the last heads by the selected ones
    for (s, t), index in zip([(0, 0), (0, 1), (1, 0), (1, 1)], (1, 2, 3, 5), strict=True):
        for name, tensor in stays.state(*old[index]).items():
            torch.testing.assert_close(fewer.state(s, t)[name], tensor, rtol=1e-5, atol=5e-6)


def test_untrained_heads_share_one_head() -> None:
    """A grid of adjustments takes the memory of one head."""
    runs = make_runs("tau_norm", seeds=range(21))
    stack = Stack(DeviceBank(BANK, "cpu"), runs, [range(21)])
    assert stack.shape == (1, 21)
    assert stack.head.parameters["weight"].shape == (1, 5, 1, 4)
    assert torch.isnan(stack.train_epoch()).all()
    assert stack.train_epoch().shape == (1, 21)
