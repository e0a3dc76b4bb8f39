"""`lws` and `disalign`: methods that re-scale the frozen stage-1 classifier."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses import CrossEntropy
from lt_train.methods import LWS, DisAlign
from lt_train.methods.base import METHODS
from lt_train.methods.samplers import Instance


def test_lws_defaults_are_those_of_the_original() -> None:
    method = LWS()
    assert method.lane_values() == {"lr": 0.2, "weight_decay": 5e-4, "momentum": 0.9}
    assert (method.head.kind, method.sampler.kind, method.init) == ("lws", "class_balanced", "checkpoint")


def test_lws_sampler_is_free_and_start_is_not() -> None:
    method = METHODS.parse({"kind": "lws", "sampler": "instance"})
    assert isinstance(method, LWS)
    assert method.sampler == Instance()
    with pytest.raises(SpecError, match="init must be checkpoint, got random"):
        METHODS.parse({"kind": "lws", "init": "random"})
    with pytest.raises(SpecError, match="known: lws"):
        METHODS.parse({"kind": "lws", "head": {"kind": "linear"}})


COUNTS = torch.tensor([100, 25, 4])


def weights(rho: torch.Tensor, counts: torch.Tensor = COUNTS) -> torch.Tensor:
    loss = DisAlign().loss({"rho": rho}, counts)
    assert isinstance(loss, CrossEntropy)
    assert isinstance(loss.weight, torch.Tensor)
    return loss.weight


def test_disalign_weights_by_hand() -> None:
    # Square roots 10, 5 and 2: their inverses are 1, 2 and 5 in parts of 8, and sum to K = 3.
    assert weights(torch.tensor(0.5)).tolist() == pytest.approx([3 / 8, 6 / 8, 15 / 8])
    assert weights(torch.tensor(0.0)).tolist() == pytest.approx([1.0] * 3)


def test_disalign_rho_differs_by_lane_and_does_not_overflow() -> None:
    found = weights(torch.tensor([[[0.5, 60.0]]]), torch.tensor([10**6, 10**6 - 1, 2]))
    assert found.shape == (1, 1, 2, 3)
    assert bool(found.isfinite().all())
    assert found[0, 0].sum(dim=-1).tolist() == pytest.approx([3.0, 3.0])


def test_disalign_defaults_and_rejected_values() -> None:
    method = DisAlign()
    assert method.lane_values() == {"lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "rho": 1.5}
    assert (method.head.kind, method.sampler.kind) == ("disalign", "instance")
    assert "1 of 2 have none: 1" in method.incompatibility(torch.tensor([3, 0]))
    for document, message in (
        ({"rho": -1.0}, r"disalign\.rho: must be at least 0, got -1\.0"),
        ({"init": "random"}, "init must be checkpoint, got random"),
        ({"head": {"kind": "linear"}}, "known: disalign"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "disalign", **document})
