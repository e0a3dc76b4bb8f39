"""`logit_adjust_loss`: the log prior is added in training, tau times."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.logit_adjust_loss import LogitAdjustedLoss


def test_a_prior_may_be_given() -> None:
    method, zeros, labels = LogitAdjustedLoss(prior=(0.5, 0.25, 0.25)), torch.zeros(3, 3), torch.arange(3)
    loss = method.loss({"tau": torch.tensor(2.0)}, torch.tensor([8, 3, 1]))
    # Squares of the prior are 4, 1 and 1 in parts of 6.
    assert loss(zeros, labels).tolist() == pytest.approx([math.log(6 / 4), math.log(6), math.log(6)])
    assert "prior" in method.static_fields()
    assert method.lane_values()["tau"] == 1.0


def test_what_is_refused() -> None:
    assert "1 of 3 have none: 1" in LogitAdjustedLoss().incompatibility(torch.tensor([5, 0, 2]))
    given = LogitAdjustedLoss(prior=(0.5, 0.25, 0.25))
    assert given.incompatibility(torch.tensor([5, 0, 2])) == ""
    assert "one share for each of the 2 classes, got 3" in given.incompatibility(torch.tensor([5, 2]))
    for field, value, message in (
        ("tau", -1.0, r"tau: must be at least 0, got -1\.0"),
        ("prior", [0.5, 0.4], r"prior: shares must sum to 1 .* got a sum of 0\.9"),
        ("post_hoc", "logit_adjust", "and post_hoc logit_adjust would each correct for class frequencies"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "logit_adjust_loss", field: value})
