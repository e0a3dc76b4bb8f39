"""`focal`: gamma is searched, and cannot be negative."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses.focal import Focal
from lt_train.methods.base import METHODS
from lt_train.methods.focal import FocalLoss


def test_gamma_differs_by_lane() -> None:
    assert FocalLoss().lane_values()["gamma"] == 2.0
    loss = FocalLoss().loss({"gamma": torch.tensor([[[0.0, 1.0]]])}, torch.ones(2))
    assert isinstance(loss, Focal)
    # p_y = 1/2: log 2, and half of it.
    found = loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[0]]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([1.0, 0.5]) * torch.tensor(2.0).log())


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(SpecError, match=r"focal\.gamma: must be at least 0, got -0\.5"):
        METHODS.parse({"kind": "focal", "gamma": -0.5})
    assert FocalLoss(gamma=0.0).gamma == 0.0
