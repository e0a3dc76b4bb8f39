"""The recipe's loss by hand, and the cosine schedule."""

import math
from pathlib import Path

import pytest
import torch

import sweeps
from lt_train.pretrain.base import RECIPES


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])
    loss = RECIPES.parse({"kind": "ce"}).loss(logits, torch.tensor([0, 1]), torch.tensor([5, 1]), 0)
    torch.testing.assert_close(loss, torch.tensor([math.log(4), math.log(2)]))


@pytest.mark.parametrize("kind", list(RECIPES.kinds()))
def test_every_recipe_gives_a_finite_loss_a_sample_and_positive_rates(kind: str) -> None:
    recipe = RECIPES.parse({"kind": kind})
    counts = torch.tensor([100, 10, 1])
    for epoch in range(recipe.epochs):
        loss = recipe.loss(torch.randn(8, 3), torch.arange(8) % 3, counts, epoch)
        assert loss.shape == (8,)
        assert bool(loss.isfinite().all())
        assert recipe.learning_rate(epoch) > 0


def test_the_cosine_starts_at_lr_and_is_half_midway() -> None:
    recipe = RECIPES.parse({"kind": "ce", "lr": 0.4, "epochs": 10})
    assert recipe.learning_rate(0) == 0.4
    assert recipe.learning_rate(5) == pytest.approx(0.2)
    assert recipe.learning_rate(9) == pytest.approx(0.4 * 0.5 * (1 + math.cos(0.9 * math.pi)))


@pytest.mark.parametrize("ratio", [10, 50])
def test_ready_sweeps_train_ltwbs_strong_baseline(ratio: int) -> None:
    spec = sweeps.load(Path(sweeps.__file__).parent / "specs" / f"cifar100_lt_ir{ratio}.yaml")
    assert spec.backbone is not None
    assert spec.backbone.kind == "resnet34"
    recipe = spec.stage1
    assert recipe is not None
    assert (recipe.kind, recipe.epochs, recipe.batch_size, recipe.momentum) == ("ce", 200, 64, 0.9)
    assert (recipe.lr, recipe.weight_decay) == (0.01, 5e-3)
    for epoch in range(200):  # torch's CosineAnnealingLR(optimizer, 200), eta_min 0
        assert recipe.learning_rate(epoch) == pytest.approx(0.01 * (1 + math.cos(math.pi * epoch / 200)) / 2)
