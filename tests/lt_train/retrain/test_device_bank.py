"""Batch orders are shared by stacks, batches come from the epoch's view, test views are averaged for affine heads."""

from dataclasses import replace

import pytest
import torch
from support.banks import make_bank

from lt_train.features.bank import FeatureBank
from lt_train.methods.heads.base import HEADS
from lt_train.methods.heads.linear import Cosine
from lt_train.methods.samplers import SAMPLERS, Instance, SamplerSpec
from lt_train.retrain.stack import DeviceBank


@pytest.fixture
def bank() -> FeatureBank:
    return make_bank(test_images=60)


@pytest.mark.parametrize("kind", SAMPLERS.kinds())
def test_an_order_is_drawn_once_for_all_stacks_of_a_seed(
    bank: FeatureBank, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, drawn = SAMPLERS.kinds()[kind](), []
    order = type(sampler).order

    def counted(self: SamplerSpec, labels: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
        drawn.append((seed, epoch))
        return order(self, labels, seed, epoch)

    monkeypatch.setattr(type(sampler), "order", counted)
    data = DeviceBank(bank, "cpu")
    for epoch in range(2):
        for _ in range(3):  # stacks
            for seed in (4, 9):
                assert torch.equal(data.order(sampler, seed, epoch), order(sampler, bank.train_labels, seed, epoch))
    assert drawn == [(4, 0), (9, 0), (4, 1), (9, 1)]


def test_orders_of_different_samplers_are_cached_separately(bank: FeatureBank) -> None:
    data = DeviceBank(bank, "cpu")
    orders = {kind: data.order(spec(), 0, 0) for kind, spec in SAMPLERS.kinds().items()}
    for kind, order in orders.items():
        assert torch.equal(order, SAMPLERS.kinds()[kind]().order(bank.train_labels, 0, 0))
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(orders)


def test_a_stack_that_is_an_epoch_behind_gets_its_own_order(bank: FeatureBank) -> None:
    data, sampler = DeviceBank(bank, "cpu"), Instance()
    for epoch in (0, 1, 0, 1, 1):
        assert torch.equal(data.order(sampler, 3, epoch), sampler.order(bank.train_labels, 3, epoch))


@pytest.mark.parametrize("epoch", range(7))
def test_batches_come_from_the_view_of_their_epoch(bank: FeatureBank, epoch: int) -> None:
    orders = torch.tensor([[3, 200, 3, 7, 1], [0, 233, 100, 100, 9]])
    batches = list(DeviceBank(bank, "cpu").batches(epoch, orders, 3))
    assert [tuple(features.shape) for features, _ in batches] == [(2, 3, 8), (2, 2, 8)]  # the last one is short
    assert [tuple(labels.shape) for _, labels in batches] == [(2, 3, 1), (2, 2, 1)]
    assert torch.equal(torch.cat([features for features, _ in batches], dim=1), bank.train_features[epoch % 3, orders])
    assert torch.equal(torch.cat([labels for _, labels in batches], dim=1)[..., 0], bank.train_labels[orders])


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_views_are_averaged_where_logits_are_affine_in_the_inputs(bank: FeatureBank, kind: str) -> None:
    head = HEADS.kinds()[kind]()
    images = DeviceBank(bank, "cpu").images(head)
    assert images.keys() == {"val", "test"}
    assert images["test"].inputs.shape[:2] == ((1 if head.affine else 2), 60)
    assert images["test"].totals.tolist() == [10] * 6
    views = torch.stack([head.inputs(view, bank.head) for view in bank.test.features])
    torch.testing.assert_close(images["test"].inputs, views.mean(dim=0, keepdim=True) if head.affine else views)


def test_images_are_read_once_per_kind_of_inputs(bank: FeatureBank) -> None:
    """Not once per scale, which is a lane value; squashing gives other inputs."""
    data = DeviceBank(bank, "cpu")
    one = data.images(Cosine(scale=30.0))
    assert data.images(Cosine(scale=10.0)) is one
    assert data.images(Cosine(squash=True)) is not one
    assert not torch.equal(data.images(Cosine(squash=True))["test"].inputs, one["test"].inputs)


def test_a_bank_without_val_or_head(bank: FeatureBank) -> None:
    data = DeviceBank(replace(bank, val=None, head=None), "cpu")
    assert data.start is None
    assert data.images(Cosine()).keys() == {"test"}
