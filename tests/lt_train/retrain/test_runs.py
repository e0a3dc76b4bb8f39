"""What defines a run for both engines: schedule, start, and which runs share a stack."""

from dataclasses import replace

import pytest
import torch
from support.banks import make_bank
from support.compositions import ALLOWED, DEFAULTS, OPTIONS, PARTS
from support.engines import lone_run, make_runs

from lt_train.core.fields import substitute
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod, TrainingSpec
from lt_train.retrain.base import EpochSelection, Run, diverged, learning_rate_factor, score_column, start_head
from lt_train.retrain.fused import _PackTraining

FRESH = lone_run({"kind": "ce", "init": "random"})


# The schedule


@pytest.mark.parametrize("epochs", [1, 2, 7, 20])
def test_the_schedule_is_torchs_cosine(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        assert 0.3 * learning_rate_factor(epoch, epochs) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_the_papers_last_rate() -> None:
    assert 5e-4 * learning_rate_factor(0, 20) == 5e-4
    assert 5e-4 * learning_rate_factor(19, 20) == pytest.approx(3.08e-6, abs=0.005e-6)


def test_the_protocol_of_the_paper_is_the_default() -> None:
    training, method = TrainingSpec(), DEFAULTS["los"]
    assert isinstance(method, TrainedMethod)
    assert (training.epochs, training.batch_size) == (20, 64)
    assert (method.lr, method.momentum, method.weight_decay, method.init) == (5e-4, 0.9, 0.0, "checkpoint")
    assert EpochSelection() == EpochSelection("last", "val", "acc_all")


def test_a_failure_counts_epochs_from_one_and_says_what_to_do() -> None:
    assert diverged(0) == "diverged: loss or weights are not finite in epoch 1; lower lr"


@pytest.mark.parametrize(("metric", "column"), [("acc_all", 0), ("acc_many", 1), ("acc_medium", 2), ("acc_few", 3)])
def test_a_rule_selects_by_its_column(metric: str, column: int) -> None:
    assert score_column(EpochSelection("last", "test", metric)) == column  # type: ignore[arg-type]


# The start


def test_a_random_head_is_torchs_uniform_and_depends_on_the_seed() -> None:
    counts = torch.full((300,), 30)
    features = torch.zeros(1, 1, 64)
    images = EvalSet(features, torch.zeros(1, dtype=torch.int64))
    bank = FeatureBank("wide", features, torch.zeros(1, dtype=torch.int64), None, images, None, counts, counts)
    weight, bias = start_head(bank, FRESH)
    for tensor in (weight, bias):
        assert float(tensor.abs().max()) <= 64**-0.5
        assert float(tensor.abs().max()) > 0.95 * 64**-0.5
        assert abs(float(tensor.mean())) < 0.1 * 64**-0.5
    again, other = start_head(bank, FRESH), start_head(bank, replace(FRESH, seed=1))
    assert torch.equal(again[0], weight)
    assert not torch.equal(other[0], weight)
    los = lone_run({"kind": "los", "init": "random"})
    assert torch.equal(start_head(bank, los)[0], weight), "methods with equal seeds start alike"


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_start_is_a_copy_of_the_stage_1_head_or_random(kind: str) -> None:
    bank, run = make_bank(), Run(DEFAULTS[kind], TrainingSpec(), 0)
    assert bank.head is not None
    before = bank.head[0].clone(), bank.head[1].clone()
    start = start_head(bank, run)
    random = isinstance(run.method, TrainedMethod) and run.method.init == "random"
    for mine, own in zip(start, bank.head, strict=True):
        assert torch.equal(mine, own) != random
        mine.zero_()
    assert torch.equal(bank.head[0], before[0])
    assert torch.equal(bank.head[1], before[1])


# Which runs share a stack


@pytest.mark.parametrize("method", {**ALLOWED, **OPTIONS, **PARTS}.values(), ids={**ALLOWED, **OPTIONS, **PARTS})
def test_runs_that_differ_in_lane_values_and_seeds_train_together(method: MethodSpec) -> None:
    assert len({run.static_key() for run in make_runs(method)}) == 1


def test_runs_that_differ_in_anything_else_do_not() -> None:
    methods = {**ALLOWED, **OPTIONS, **PARTS}.values()
    keys = {Run(method, TrainingSpec(), 0).static_key() for method in methods}
    assert len(keys) == len(set(methods))
    trainings = (TrainingSpec(), TrainingSpec(epochs=3), TrainingSpec(batch_size=3), TrainingSpec(matmul="tf32"))
    assert len({Run(DEFAULTS["los"], training, 0).static_key() for training in trainings}) == 4
    priors = ([0.5, 0.5], [0.4, 0.6])
    adjusted = [lone_run({"kind": "logit_adjust_loss", "prior": prior}).static_key() for prior in priors]
    assert adjusted[0] != adjusted[1]


def test_a_grid_of_tau_is_one_stack_and_another_bias_is_not() -> None:
    """The whole grid of a post-hoc method is one stack, whatever the seeds."""
    taus = [METHODS.parse({"kind": "tau_norm", "post_hoc": {"kind": "tau_norm", "tau": tau / 10}}) for tau in range(21)]
    kept = METHODS.parse({"kind": "tau_norm", "post_hoc": {"kind": "tau_norm", "bias": "keep"}})
    runs = [Run(method, TrainingSpec(), seed) for seed, method in enumerate([*taus, kept])]
    pack = _PackTraining(make_bank(), runs, "cpu", EpochSelection(), None)
    assert [stack.shape for stack in pack._stacks(range(22))] == [(1, 21), (1, 1)]
    assert substitute(taus[0], {"post_hoc.tau": 2.0}) == taus[20]
