"""`ltwb`: the constraint of `maxnorm`, the loss of `class_balanced`, and a strong weight decay."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.class_balanced import ClassBalancedLoss
from lt_train.methods.ltwb import WeightBalancing


def test_it_is_class_balanced_but_for_constraint_and_optimiser() -> None:
    found, weighted = WeightBalancing().model_dump(), ClassBalancedLoss().model_dump()
    assert {name for name in found if found[name] != weighted[name]} == {"kind", "constraint", "lr", "weight_decay"}
    assert (found["lr"], found["weight_decay"]) == (0.01, 0.1)
    assert found["constraint"] == {"kind": "maxnorm", "every": "epoch", "fraction": 0.1}


def test_the_loss_is_that_of_class_balanced() -> None:
    counts, lanes = torch.tensor([500, 60, 1]), {"beta": torch.tensor(0.9), "gamma": torch.tensor(2.0)}
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    found, expected = (
        method.loss(lanes, counts)(logits, labels) for method in (WeightBalancing(), ClassBalancedLoss())
    )
    assert torch.equal(found, expected)


def test_what_is_refused() -> None:
    assert "1 of 2 have none: 0" in WeightBalancing().incompatibility(torch.tensor([0, 3]))
    with pytest.raises(SpecError, match=r"ltwb\.beta: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"):
        METHODS.parse({"kind": "ltwb", "beta": 1.0})
    with pytest.raises(SpecError, match=r"ltwb\.constraint: must be a mapping"):
        METHODS.parse({"kind": "ltwb", "constraint": None})
