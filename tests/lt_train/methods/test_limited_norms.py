"""`cosine`, `maxnorm` and `ltwb`: methods that control the norms of weight rows."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods import CE, LTWB, ClassBalanced, Cosine, MaxNorm
from lt_train.methods.base import METHODS


def test_cosine_searches_the_scale_of_the_head() -> None:
    method = Cosine()
    assert method.lane_values() == {"lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "head.scale": 30.0}
    assert method.static_fields()["head"] == {"kind": "cosine", "squash": False}


def test_cosine_has_a_fixed_head() -> None:
    oltr = METHODS.parse({"kind": "cosine", "head": {"kind": "cosine", "scale": 16.0, "squash": True}})
    logits = oltr.head.module((torch.eye(3), torch.ones(3)))(torch.tensor([3.0, 0.0, 0.0]))
    torch.testing.assert_close(logits.detach(), torch.tensor([12.0, 0.0, 0.0]))
    with pytest.raises(SpecError, match="known: cosine"):
        METHODS.parse({"kind": "cosine", "head": {"kind": "linear"}})
    with pytest.raises(SpecError, match=r"cosine\.head\.scale: must be above 0"):
        METHODS.parse({"kind": "cosine", "head": {"kind": "cosine", "scale": 0.0}})


def test_max_norm_is_ce_with_a_constraint() -> None:
    found, plain = MaxNorm().model_dump(), CE().model_dump()
    assert {name for name in found if found[name] != plain[name]} == {"kind", "constraint"}
    assert found["constraint"] == {"kind": "maxnorm", "every": "epoch", "fraction": 0.1}
    assert MaxNorm().lane_values()["constraint.fraction"] == 0.1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"constraint": None}, r"maxnorm\.constraint: must be a mapping"),
        ({"constraint": {"kind": "maxnorm", "fraction": 0.0}}, r"maxnorm\.constraint\.fraction: must be above 0"),
        (
            {"head": "cosine"},
            "maxnorm bounds the length of trained weight rows, and head cosine has none; use one of linear",
        ),
    ],
)
def test_max_norm_rejected_values(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "maxnorm", **document})


def test_ltwb_is_class_balanced_with_constraint_and_weight_decay() -> None:
    found, weighted = LTWB().model_dump(), ClassBalanced().model_dump()
    assert {name for name in found if found[name] != weighted[name]} == {"kind", "constraint", "lr", "weight_decay"}
    assert (found["lr"], found["weight_decay"]) == (0.01, 0.1)
    assert found["constraint"] == {"kind": "maxnorm", "every": "epoch", "fraction": 0.1}


def test_ltwb_has_the_loss_of_class_balanced() -> None:
    counts, lanes = torch.tensor([500, 60, 1]), {"beta": torch.tensor(0.9), "gamma": torch.tensor(2.0)}
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    found, expected = (method.loss(lanes, counts)(logits, labels) for method in (LTWB(), ClassBalanced()))
    assert torch.equal(found, expected)


def test_ltwb_rejected_values() -> None:
    assert "1 of 2 have none: 0" in LTWB().incompatibility(torch.tensor([0, 3]))
    with pytest.raises(SpecError, match=r"ltwb\.beta: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"):
        METHODS.parse({"kind": "ltwb", "beta": 1.0})
    with pytest.raises(SpecError, match=r"ltwb\.constraint: must be a mapping"):
        METHODS.parse({"kind": "ltwb", "constraint": None})
