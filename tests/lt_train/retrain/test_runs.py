"""What both engines share: refusals before anything starts, the schedule, batch orders, starting heads."""

from dataclasses import replace

import pytest
import torch

from lt_train.errors import BankError
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import TrainingSpec, parse_method
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Engine, EpochRule, Run, diverged, epoch_order, learning_rate_factor, start_head

every_engine = pytest.mark.parametrize("engine", [reference.fit, fused.fit], ids=["reference", "fused"])
FRESH = Run(parse_method({"kind": "ce", "init": "fresh"}), TrainingSpec(epochs=1), 0)


def make_bank(*, val: bool = True, head: bool = True) -> FeatureBank:
    features, labels = torch.eye(3)[None], torch.arange(3)
    images = EvalSet(features, labels)
    counts = torch.tensor([200, 50, 30])
    start = (torch.full((3, 3), 0.5), torch.zeros(3)) if head else None
    return FeatureBank("small", features, labels, images if val else None, images, start, counts, counts)


@every_engine
def test_best_on_val_needs_a_val_set(engine: Engine) -> None:
    bank = make_bank(val=False)
    with pytest.raises(BankError, match="best on val needs a validation set, and this bank has none; use on: test"):
        engine(bank, [FRESH], rule=EpochRule("best", "val"))
    assert engine(bank, [FRESH], rule=EpochRule("best", "test"))[0].failure is None
    assert engine(bank, [FRESH], rule=EpochRule("last", "val"))[0].failure is None


@every_engine
@pytest.mark.parametrize("epoch", ["last", "best"])
def test_a_split_without_classes_cannot_be_selected_on(engine: Engine, epoch: str) -> None:
    rule = EpochRule(epoch, "test", "acc_few")  # type: ignore[arg-type]
    with pytest.raises(BankError, match="acc_few cannot be selected on: no class of this dataset is in that split"):
        engine(make_bank(), [FRESH], rule=rule)
    assert engine(make_bank(), [FRESH], rule=replace(rule, metric="acc_medium"))[0].failure is None


@every_engine
@pytest.mark.parametrize("on", ["val", "test"])
def test_a_split_without_images_cannot_be_selected_on(engine: Engine, on: str) -> None:
    bank = make_bank()
    without = EvalSet(bank.test.features[:, 1:], bank.test.labels[1:])
    bank = replace(bank, **{on: without})
    with pytest.raises(BankError, match=f"acc_many cannot be selected on: the {on} set has no picture of that split"):
        engine(bank, [FRESH], rule=EpochRule("best", on, "acc_many"))  # type: ignore[arg-type]
    other = EpochRule("best", "test" if on == "val" else "val", "acc_many")  # type: ignore[arg-type]
    assert engine(bank, [FRESH], rule=other)[0].failure is None


@every_engine
@pytest.mark.parametrize("document", [{"kind": "vanilla"}, {"kind": "ce"}, {"kind": "los", "init": "warm"}])
def test_a_warm_start_needs_a_head(engine: Engine, document: dict[str, str]) -> None:
    run = Run(parse_method(document), TrainingSpec(epochs=1), 0)
    with pytest.raises(
        BankError, match=f"method {document['kind']} starts from the stage-1 head, and this bank has none"
    ):
        engine(make_bank(head=False), [FRESH, run])
    assert len(engine(make_bank(head=False), [FRESH])) == 1


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


def test_batch_orders_are_permutations_named_by_seed_and_epoch() -> None:
    orders = {(seed, epoch): epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    for (seed, epoch), order in orders.items():
        assert order.sort().values.tolist() == list(range(50))
        assert torch.equal(order, epoch_order(50, seed, epoch))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4


def test_a_fresh_head_is_torchs_uniform_and_the_seeds_own() -> None:
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
    los = Run(parse_method({"kind": "los", "init": "fresh"}), TrainingSpec(), 0)
    assert torch.equal(start_head(bank, los)[0], weight), "methods with one seed start alike"


def test_a_warm_start_is_a_copy_of_the_stage_1_head() -> None:
    bank = make_bank()
    assert bank.head is not None
    weight, bias = start_head(bank, Run(parse_method({"kind": "ce"}), TrainingSpec(), 0))
    assert torch.equal(weight, bank.head[0])
    assert torch.equal(bias, bank.head[1])
    weight.zero_(), bias.fill_(1.0)
    assert float(bank.head[0].min()) == 0.5
    assert float(bank.head[1].max()) == 0.0


def test_a_failure_counts_epochs_from_one_and_says_what_to_do() -> None:
    assert diverged(0) == "diverged: loss or weights are not finite in epoch 1; lower lr"
