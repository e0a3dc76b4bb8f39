"""`balanced_softmax`, `logit_adjust_loss` and `ldam`: losses that shift the logits."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods import BalancedSoftmax, LogitAdjustLoss
from lt_train.methods.base import METHODS, TrainedMethod


def test_balanced_softmax_equal_logits_are_optimal_on_the_training_set() -> None:
    """With equal logits the loss already predicts the class frequencies: its gradient over the training set is 0."""
    counts = torch.tensor([8, 3, 1])
    labels = torch.arange(3).repeat_interleave(counts)
    _, gradient = BalancedSoftmax().loss({}, counts).with_gradient(torch.zeros(12, 3), labels)
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(3), atol=1e-5, rtol=0)


def test_balanced_softmax_rejected_values() -> None:
    assert BalancedSoftmax().incompatibility(torch.tensor([5, 1])) == ""
    assert "1 of 2 have none: 1" in BalancedSoftmax().incompatibility(torch.tensor([5, 0]))
    with pytest.raises(SpecError, match="and post_hoc logit_adjust each correct for class frequencies"):
        METHODS.parse({"kind": "balanced_softmax", "post_hoc": "logit_adjust"})
    with pytest.raises(SpecError, match=r"balanced_softmax\.tau: unknown key"):
        METHODS.parse({"kind": "balanced_softmax", "tau": 1.0})


def test_logit_adjust_loss_with_a_given_prior() -> None:
    method, zeros, labels = LogitAdjustLoss(prior=(0.5, 0.25, 0.25)), torch.zeros(3, 3), torch.arange(3)
    loss = method.loss({"tau": torch.tensor(2.0)}, torch.tensor([8, 3, 1]))
    # Squares of the prior are 4, 1 and 1 in parts of 6.
    assert loss(zeros, labels).tolist() == pytest.approx([math.log(6 / 4), math.log(6), math.log(6)])
    assert "prior" in method.static_fields()
    assert method.lane_values()["tau"] == 1.0


def test_logit_adjust_loss_rejected_values() -> None:
    assert "1 of 3 have none: 1" in LogitAdjustLoss().incompatibility(torch.tensor([5, 0, 2]))
    given = LogitAdjustLoss(prior=(0.5, 0.25, 0.25))
    assert given.incompatibility(torch.tensor([5, 0, 2])) == ""
    assert "one share for each of the 2 classes, got 3" in given.incompatibility(torch.tensor([5, 2]))
    for field, value, message in (
        ("tau", -1.0, r"tau: must be at least 0, got -1\.0"),
        ("prior", [0.5, 0.4], r"prior: shares must sum to 1 .* got a sum of 0\.9"),
        ("post_hoc", "logit_adjust", "and post_hoc logit_adjust each correct for class frequencies"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "logit_adjust_loss", field: value})


COUNTS = torch.tensor([10000, 625, 16])
"""Fourth roots 10, 5 and 2: margins are 1/5, 2/5 and 1 of the largest."""


def losses(document: dict[str, object]) -> list[float]:
    method = METHODS.parse({"kind": "ldam", **document})
    assert isinstance(method, TrainedMethod)
    lanes = {name: torch.tensor(value) for name, value in method.lane_values().items()}
    return [float(x) for x in method.loss(lanes, COUNTS)(torch.zeros(3, 3), torch.arange(3))]


@pytest.mark.parametrize(
    ("document", "scale", "margin"),
    [
        ({}, 30, 0.5),
        ({"max_margin": 0.25}, 30, 0.25),
        ({"head": {"kind": "cosine", "scale": 8.0}}, 8, 0.5),
        ({"head": "linear"}, 1, 0.5),
        ({"head": "lws"}, 1, 0.5),
    ],
)
def test_ldam_margins(document: dict[str, object], scale: float, margin: float) -> None:
    expected = [math.log(1 + 2 * math.exp(scale * margin * part)) for part in (0.2, 0.4, 1.0)]
    assert losses(document) == pytest.approx(expected, rel=1e-5)


def test_ldam_scale_and_margin_differ_by_lane() -> None:
    method = METHODS.parse({"kind": "ldam"})
    assert isinstance(method, TrainedMethod)
    scale, margin = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[[0.5, 0.1]]])
    loss = method.loss({"head.scale": scale, "max_margin": margin}, COUNTS)(
        torch.zeros(1, 1, 2, 3), torch.tensor([[[2]]])
    )
    assert loss[0, 0].tolist() == pytest.approx(
        [math.log(1 + 2 * math.exp(5)), math.log(1 + 2 * math.exp(2))], rel=1e-5
    )


def test_ldam_defaults_and_rejected_values() -> None:
    method = METHODS.parse({"kind": "ldam"})
    assert method.lane_values() == {
        "head.scale": 30.0, "lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "max_margin": 0.5
    }  # fmt: skip
    assert "1 of 3 have none: 1" in method.incompatibility(torch.tensor([5, 0, 2]))
    with pytest.raises(SpecError, match=r"ldam\.max_margin: must be at least 0, got -0\.1"):
        METHODS.parse({"kind": "ldam", "max_margin": -0.1})
