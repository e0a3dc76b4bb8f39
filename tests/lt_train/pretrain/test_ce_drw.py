"""Deferred re-weighting against torch's weighted cross entropy and LDAM's weights."""

import pytest
import torch
from torch.nn import functional

from lt_train.core.errors import SpecError
from lt_train.pretrain.base import RECIPES

COUNTS = torch.tensor([5000, 300, 20, 5])


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(16, 4, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def ldam_weights(beta: float = 0.9999) -> torch.Tensor:
    """As LDAM's code: (1 - beta) / (1 - beta^n), divided by their sum, times K."""
    weights = (1 - beta) / (1 - beta ** COUNTS.double())
    return (weights / weights.sum() * len(COUNTS)).float()


def test_before_it_begins_it_is_cross_entropy(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw"}).loss(*batch, COUNTS, 159)
    assert torch.equal(loss, functional.cross_entropy(*batch, reduction="none"))


def test_from_then_on_its_mean_is_torchs_weighted_one(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw"}).loss(*batch, COUNTS, 160)
    torch.testing.assert_close(loss.mean(), functional.cross_entropy(*batch, weight=ldam_weights()))


def test_the_mean_may_be_over_images(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw", "weighted_mean": "batch"}).loss(*batch, COUNTS, 160)
    torch.testing.assert_close(loss, functional.cross_entropy(*batch, weight=ldam_weights(), reduction="none"))


def test_when_it_begins_is_a_share_of_the_epochs_or_given(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain = functional.cross_entropy(*batch, reduction="none")
    for fields, begins in (({"epochs": 10}, 8), ({"epochs": 10, "reweight_epoch": 3}, 3), ({"reweight_epoch": 0}, 0)):
        recipe = RECIPES.parse({"kind": "ce_drw"} | fields)
        begun = [not torch.equal(recipe.loss(*batch, COUNTS, epoch), plain) for epoch in range(10)]
        assert begun == [epoch >= begins for epoch in range(10)]


def test_a_beta_of_0_weighs_nothing(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw", "beta": 0}).loss(*batch, COUNTS, 199)
    torch.testing.assert_close(loss, functional.cross_entropy(*batch, reduction="none"))
    with pytest.raises(SpecError, match=r"ce_drw\.beta: must be in \[0, 1\), got 1"):
        RECIPES.parse({"kind": "ce_drw", "beta": 1})


def test_classes_without_images_are_no_use_to_it() -> None:
    assert "2 of 3 have none: 1, 2" in RECIPES.parse({"kind": "ce_drw"}).incompatibility(torch.tensor([4, 0, 0]))
