"""LDAM's schedule: the published epochs, their shares of a shorter training, and given epochs."""

import pytest

from lt_train.core.errors import SpecError
from lt_train.pretrain.recipes import RECIPES, StepSchedule

KINDS = [name for name, kind in RECIPES.kinds().items() if issubclass(kind, StepSchedule)]


def published_rate(epoch: int) -> float:
    """`adjust_learning_rate` of LDAM's code, which counts epochs from 1."""
    epoch = epoch + 1
    if epoch <= 5:
        return 0.1 * epoch / 5
    if epoch > 180:
        return 0.1 * 0.0001
    if epoch > 160:
        return 0.1 * 0.01
    return 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_the_published_ones(kind: str) -> None:
    recipe = RECIPES.parse({"kind": kind})
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (200, 128, 0.9, 2e-4)
    for epoch in range(200):
        assert recipe.learning_rate(epoch) == pytest.approx(published_rate(epoch)), epoch


def test_a_shorter_training_has_the_same_shape() -> None:
    recipe = RECIPES.parse({"kind": "ce_drw", "epochs": 40, "lr": 1.0})
    assert [recipe.learning_rate(epoch) for epoch in (0, 1, 31, 32, 35, 36, 39)] == [1, 1, 1, 0.01, 0.01, 1e-4, 1e-4]
    assert RECIPES.parse({"kind": "ce_drw", "epochs": 1}).learning_rate(0) == 0.1


def test_given_epochs() -> None:
    fields = {"epochs": 10, "warmup_epochs": 2, "first_drop": 4, "second_drop": 5, "lr": 1.0}
    recipe = RECIPES.parse({"kind": "balanced_softmax"} | fields)
    assert [recipe.learning_rate(epoch) for epoch in range(7)] == [0.5, 1, 1, 1, 0.01, 1e-4, 1e-4]
    with pytest.raises(SpecError, match=r"first_drop and second_drop must not decrease, got 1, 39, 36 \(defaults are"):
        RECIPES.parse({"kind": "ce_drw", "epochs": 40, "first_drop": 39})
