"""Balanced softmax against its formula; counts that are equal change nothing."""

import torch
from torch.nn import functional

from lt_train.pretrain.base import RECIPES

RECIPE = RECIPES.parse({"kind": "balanced_softmax"})


def test_the_formula() -> None:
    logits, labels, counts = torch.randn(8, 3), torch.arange(8) % 3, torch.tensor([100, 10, 1])
    weighted = counts * logits.exp()
    expected = -(weighted[torch.arange(8), labels] / weighted.sum(dim=1)).log()
    torch.testing.assert_close(RECIPE.loss(logits, labels, counts, 0), expected)
    torch.testing.assert_close(RECIPE.loss(logits, labels, counts, 199), expected)


def test_equal_counts_make_it_cross_entropy() -> None:
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(RECIPE.loss(logits, labels, torch.tensor([7, 7, 7]), 0), expected)


def test_classes_without_images_are_no_use_to_it() -> None:
    assert "1 of 2 have none: 1" in RECIPE.incompatibility(torch.tensor([4, 0]))
