"""Instance sampling visits every image once an epoch."""

import pytest
import torch

from lt_train.methods.samplers.instance import Instance

LABELS = torch.arange(7).repeat_interleave(torch.tensor([50, 30, 9, 4, 2, 1, 1]))


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_image_once(epoch: int) -> None:
    order = Instance().order(LABELS, 0, epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(len(LABELS)))
    assert order.tolist() != list(range(len(LABELS)))


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    orders = {(s, e): tuple(Instance().order(LABELS, s, e).tolist()) for s in (0, 1) for e in (0, 1)}
    torch.manual_seed(3)
    again = {(s, e): tuple(Instance().order(LABELS.flip(0), s, e).tolist()) for s in (0, 1) for e in (0, 1)}
    assert again == orders
    assert len(set(orders.values())) == 4
