"""Cross entropy on LDAM's schedule is `ce_drw` before its re-weighting, to the end."""

import torch

from lt_train.pretrain.base import RECIPES

RECIPE = RECIPES.parse({"kind": "ce_steps"})


def test_it_is_ce_drw_without_the_weights() -> None:
    deferred = RECIPES.parse({"kind": "ce_drw"})
    logits, labels, counts = torch.randn(8, 3), torch.arange(8) % 3, torch.tensor([100, 10, 1])
    for epoch in (0, 159):
        assert torch.equal(RECIPE.loss(logits, labels, counts, epoch), deferred.loss(logits, labels, counts, epoch))
    assert torch.equal(RECIPE.loss(logits, labels, counts, 199), RECIPE.loss(logits, labels, counts, 0))
    assert not torch.allclose(RECIPE.loss(logits, labels, counts, 199), deferred.loss(logits, labels, counts, 199))
    assert [RECIPE.learning_rate(epoch) for epoch in range(200)] == [deferred.learning_rate(e) for e in range(200)]
