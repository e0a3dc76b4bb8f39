"""Data samplers: every image once per epoch, or class-balanced draws."""

import pytest
import torch

from lt_train.methods.samplers import SAMPLERS, ClassBalanced, Instance
from lt_train.testing import check_sampler

LABELS = torch.arange(7).repeat_interleave(torch.tensor([50, 30, 9, 4, 2, 1, 1]))


@pytest.mark.parametrize("kind", SAMPLERS.kinds())
def test_they_conform(kind: str) -> None:
    check_sampler(SAMPLERS.kinds()[kind])


@pytest.mark.parametrize("epoch", [0, 3])
def test_instance_every_image_once(epoch: int) -> None:
    order = Instance().order(LABELS, 0, epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(len(LABELS)))
    assert order.tolist() != list(range(len(LABELS)))


def test_instance_order_depends_on_seed_and_epoch_only() -> None:
    orders = {(s, e): tuple(Instance().order(LABELS, s, e).tolist()) for s in (0, 1) for e in (0, 1)}
    torch.manual_seed(3)
    again = {(s, e): tuple(Instance().order(LABELS.flip(0), s, e).tolist()) for s in (0, 1) for e in (0, 1)}
    assert again == orders
    assert len(set(orders.values())) == 4


COUNTS = torch.tensor([500, 300, 120, 40, 20, 12, 8])
CLASS_BALANCED_LABELS = torch.arange(7).repeat_interleave(COUNTS)


def chi_square(found: torch.Tensor, expected: float) -> float:
    return float(((found - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", range(5))
def test_class_balanced_classes_are_uniform(seed: int) -> None:
    order = ClassBalanced().order(CLASS_BALANCED_LABELS, seed, 0)
    assert order.shape == CLASS_BALANCED_LABELS.shape
    assert order.dtype == torch.int64
    drawn = torch.bincount(CLASS_BALANCED_LABELS[order], minlength=7)
    # 6 degrees of freedom: above 22.5 once in a thousand seeds; instance sampling has over 1000.
    assert chi_square(drawn, len(CLASS_BALANCED_LABELS) / 7) < 22.5
    assert chi_square(COUNTS, len(CLASS_BALANCED_LABELS) / 7) > 1000


def test_class_balanced_images_of_a_class_are_uniform() -> None:
    shuffled = CLASS_BALANCED_LABELS[
        torch.randperm(len(CLASS_BALANCED_LABELS), generator=torch.Generator().manual_seed(0))
    ]
    orders = torch.cat([ClassBalanced().order(shuffled, 0, epoch) for epoch in range(30)])
    times = torch.bincount(orders, minlength=len(CLASS_BALANCED_LABELS))
    for label in range(7):
        of_class = times[shuffled == label]
        # Mean of chi square is its degrees of freedom, its variance twice that: five standard deviations.
        freedom = len(of_class) - 1
        assert chi_square(of_class, float(of_class.double().mean())) < freedom + 5 * (2 * freedom) ** 0.5
        assert bool((of_class > 0).all())


def test_class_balanced_with_empty_and_tiny_classes() -> None:
    labels = torch.tensor([0] * 400 + [3] + [5] * 2)
    order = ClassBalanced().order(labels, 0, 0)
    drawn = torch.bincount(labels[order], minlength=7)
    assert drawn[[1, 2, 4, 6]].tolist() == [0, 0, 0, 0]
    assert chi_square(drawn[[0, 3, 5]], 403 / 3) < 13.8  # 2 degrees of freedom, one in a thousand
    assert set(order[labels[order] == 3].tolist()) == {400}
    assert set(order[labels[order] == 5].tolist()) == {401, 402}
