"""Post-hoc logit adjustment takes tau times the log prior off the logits."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.post_hoc.base import POST_HOC
from lt_train.methods.post_hoc.logit_adjust import LogitAdjust

COUNTS = torch.tensor([8, 1, 1])


def test_by_hand() -> None:
    scale, offset = LogitAdjust().affine({"tau": torch.tensor(1.0)}, COUNTS, None, None)
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert offset.tolist() == pytest.approx([-math.log(0.8), math.log(10), math.log(10)])
    given = LogitAdjust(prior=(0.5, 0.25, 0.25))
    assert given.affine({"tau": torch.tensor(2.0)}, COUNTS, None, None)[1].tolist() == pytest.approx(
        [2 * math.log(2), 2 * math.log(4), 2 * math.log(4)]
    )


def test_tau_0_leaves_the_logits() -> None:
    scale, offset = LogitAdjust().affine({"tau": torch.tensor(0.0)}, COUNTS, None, None)
    assert scale.tolist() == [1.0] * 3
    assert offset.abs().tolist() == [0.0] * 3


def test_a_whole_grid_of_tau_at_once() -> None:
    grid = torch.linspace(0, 2, 21).view(1, 1, 21, 1)
    scale, offset = LogitAdjust().affine({"tau": grid}, COUNTS, None, None)
    assert scale.shape == offset.shape == (1, 1, 21, 3)
    torch.testing.assert_close(offset[0, 0], -grid.view(21, 1) * (COUNTS / 10).log())


def test_it_balances_a_head_that_knows_nothing_but_the_prior() -> None:
    _, offset = LogitAdjust().affine({"tau": torch.tensor(1.0)}, COUNTS, None, None)
    assert ((COUNTS / 10).log() + offset).softmax(dim=0).tolist() == pytest.approx([1 / 3] * 3)


def test_a_prior_that_does_not_fit_the_classes() -> None:
    assert LogitAdjust().incompatibility(COUNTS) == ""
    assert "1 of 3 have none: 1" in LogitAdjust().incompatibility(torch.tensor([8, 0, 1]))
    assert LogitAdjust(prior=(0.5, 0.25, 0.25)).incompatibility(torch.tensor([8, 0, 1])) == ""
    assert "one share for each of the 3 classes, got 2" in LogitAdjust(prior=(0.5, 0.5)).incompatibility(COUNTS)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tau", -1.0, r"tau: must be at least 0"),
        ("prior", [0.5, 0.4], r"prior: shares must sum to 1 .* got a sum of 0\.9"),
        ("prior", [1.5, -0.5], r"prior: every class must have a share > 0, got -0\.5"),
        ("prior", [1.0, math.nan], r"prior\[1\]: must be a finite number"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        POST_HOC.parse({"kind": "logit_adjust", field: value})
