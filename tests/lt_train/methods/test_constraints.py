"""MaxNorm: rows longer than the radius are scaled to it; other rows are unchanged."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.constraints import CONSTRAINTS, MaxNorm
from lt_train.testing import check_constraint

START = torch.tensor([2.0, 7.0, 12.0])
"""Lengths of the stage-1 rows: the radius at 0.1 is 2 + 0.1 * 10 = 3."""


def test_max_norm_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, -3.0], [0.0, 0.0]])
    MaxNorm().project_(rows, -1, START, {"fraction": torch.tensor(0.1)})
    torch.testing.assert_close(rows, torch.tensor([[1.8, 2.4], [0.6, 0.8], [0.0, -3.0], [0.0, 0.0]]))


@pytest.mark.parametrize("kind", CONSTRAINTS.kinds())
def test_they_conform(kind: str) -> None:
    check_constraint(CONSTRAINTS.kinds()[kind])


def test_every_lane_has_its_own_radius() -> None:
    rows = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    fraction = torch.tensor([[[0.01, 0.2, 1.0]], [[0.5, 0.1, 0.05]]])
    MaxNorm().project_(rows, 1, START, {"fraction": fraction})
    longest = rows.norm(dim=1).amax(dim=-1)
    assert bool((longest <= 2 + 10 * fraction[:, 0] + 1e-5).all())


def test_defaults_are_those_of_the_paper() -> None:
    assert MaxNorm().model_dump() == {"kind": "maxnorm", "every": "epoch", "fraction": 0.1}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("fraction", 0.0, r"maxnorm\.fraction: must be above 0"), ("every", "batch", r"must be 'epoch' or 'step'|epoch")],
)
def test_values_out_of_range_are_rejected(field: str, value: object, message: str) -> None:
    assert CONSTRAINTS.kinds()["maxnorm"] is MaxNorm
    with pytest.raises(SpecError, match=message):
        CONSTRAINTS.parse({"kind": "maxnorm", field: value})
