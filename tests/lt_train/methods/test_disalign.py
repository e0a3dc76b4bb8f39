"""`disalign`: the aligned head under generalised re-weighting."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import METHODS
from lt_train.methods.disalign import AlignedClassifier

COUNTS = torch.tensor([100, 25, 4])


def weights(rho: torch.Tensor, counts: torch.Tensor = COUNTS) -> torch.Tensor:
    loss = AlignedClassifier().loss({"rho": rho}, counts)
    assert isinstance(loss, CrossEntropy)
    assert isinstance(loss.weight, torch.Tensor)
    return loss.weight


def test_weights_by_hand() -> None:
    # Square roots 10, 5 and 2: their inverses are 1, 2 and 5 in parts of 8, and sum to K = 3.
    assert weights(torch.tensor(0.5)).tolist() == pytest.approx([3 / 8, 6 / 8, 15 / 8])
    assert weights(torch.tensor(0.0)).tolist() == pytest.approx([1.0] * 3)


def test_every_lane_has_its_own_rho_and_large_ones_do_not_overflow() -> None:
    found = weights(torch.tensor([[[0.5, 60.0]]]), torch.tensor([10**6, 10**6 - 1, 2]))
    assert found.shape == (1, 1, 2, 3)
    assert bool(found.isfinite().all())
    assert found[0, 0].sum(dim=-1).tolist() == pytest.approx([3.0, 3.0])


def test_defaults_and_what_is_refused() -> None:
    method = AlignedClassifier()
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
