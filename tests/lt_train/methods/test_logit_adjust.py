"""`logit_adjust` trains nothing; what is searched is the tau of its adjustment."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.logit_adjust import PostHocLogitAdjustment


def test_tau_is_all_there_is_to_search() -> None:
    method = PostHocLogitAdjustment()
    assert not method.trains
    assert method.lane_values() == {"post_hoc.tau": 1.0}
    assert method.static_fields()["post_hoc"] == {"kind": "logit_adjust", "prior": None}


def test_what_is_refused() -> None:
    assert "1 of 2 have none: 1" in PostHocLogitAdjustment().incompatibility(torch.tensor([3, 0]))
    given = METHODS.parse({"kind": "logit_adjust", "post_hoc": {"kind": "logit_adjust", "prior": [0.7, 0.3]}})
    assert given.incompatibility(torch.tensor([3, 0])) == ""
    for document, message in (
        ({"post_hoc": None}, r"logit_adjust\.post_hoc: must be a mapping"),
        ({"post_hoc": {"kind": "logit_adjust", "prior": [0.7, 0.2]}}, r"post_hoc\.prior: shares must sum to 1"),
        ({"head": {"kind": "lws"}}, "known: linear"),
        ({"sampler": {"kind": "instance"}}, "sampler: unknown key"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "logit_adjust", **document})
