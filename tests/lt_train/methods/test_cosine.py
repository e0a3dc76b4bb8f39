"""`cosine`: the cosine head, trained with cross entropy."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.cosine import CosineClassifier


def test_the_scale_is_searched_where_the_head_has_it() -> None:
    method = CosineClassifier()
    assert method.lane_values() == {"lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "head.scale": 30.0}
    assert method.static_fields()["head"] == {"kind": "cosine", "squash": False}


def test_the_head_is_what_it_is_made_of() -> None:
    oltr = METHODS.parse({"kind": "cosine", "head": {"kind": "cosine", "scale": 16.0, "squash": True}})
    logits = oltr.head.module((torch.eye(3), torch.ones(3)))(torch.tensor([3.0, 0.0, 0.0]))
    torch.testing.assert_close(logits.detach(), torch.tensor([12.0, 0.0, 0.0]))
    with pytest.raises(SpecError, match="known: cosine"):
        METHODS.parse({"kind": "cosine", "head": {"kind": "linear"}})
    with pytest.raises(SpecError, match=r"cosine\.head\.scale: must be above 0"):
        METHODS.parse({"kind": "cosine", "head": {"kind": "cosine", "scale": 0.0}})
