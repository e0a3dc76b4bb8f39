"""`ldam`: margins by class size, in cosines times the scale, or in logits on a linear head."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS, TrainedMethod

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
def test_margins(document: dict[str, object], scale: float, margin: float) -> None:
    expected = [math.log(1 + 2 * math.exp(scale * margin * part)) for part in (0.2, 0.4, 1.0)]
    assert losses(document) == pytest.approx(expected, rel=1e-5)


def test_scale_and_margin_differ_by_lane_together() -> None:
    method = METHODS.parse({"kind": "ldam"})
    assert isinstance(method, TrainedMethod)
    scale, margin = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[[0.5, 0.1]]])
    loss = method.loss({"head.scale": scale, "max_margin": margin}, COUNTS)(
        torch.zeros(1, 1, 2, 3), torch.tensor([[[2]]])
    )
    assert loss[0, 0].tolist() == pytest.approx(
        [math.log(1 + 2 * math.exp(5)), math.log(1 + 2 * math.exp(2))], rel=1e-5
    )


def test_defaults_and_what_is_refused() -> None:
    method = METHODS.parse({"kind": "ldam"})
    assert method.lane_values() == {
        "head.scale": 30.0, "lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "max_margin": 0.5
    }  # fmt: skip
    assert "1 of 3 have none: 1" in method.incompatibility(torch.tensor([5, 0, 2]))
    with pytest.raises(SpecError, match=r"ldam\.max_margin: must be at least 0, got -0\.1"):
        METHODS.parse({"kind": "ldam", "max_margin": -0.1})
