"""Post-hoc adjustments: logit adjustment and tau-normalisation as affine maps of the logits."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.post_hoc import POST_HOC, LogitAdjust, PostHocSpec, TauNorm
from lt_train.testing import check_post_hoc

COUNTS = torch.tensor([8, 1, 1])


@pytest.mark.parametrize("adjustment", [*POST_HOC.kinds().values(), TauNorm(bias="keep")])
def test_they_conform(adjustment: PostHocSpec | type[PostHocSpec]) -> None:
    check_post_hoc(adjustment)


def test_logit_adjust_by_hand() -> None:
    scale, offset = LogitAdjust().affine({"tau": torch.tensor(1.0)}, COUNTS, None, None)
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert offset.tolist() == pytest.approx([-math.log(0.8), math.log(10), math.log(10)])
    given = LogitAdjust(prior=(0.5, 0.25, 0.25))
    assert given.affine({"tau": torch.tensor(2.0)}, COUNTS, None, None)[1].tolist() == pytest.approx(
        [2 * math.log(2), 2 * math.log(4), 2 * math.log(4)]
    )


def test_logit_adjust_tau_0_changes_nothing() -> None:
    scale, offset = LogitAdjust().affine({"tau": torch.tensor(0.0)}, COUNTS, None, None)
    assert scale.tolist() == [1.0] * 3
    assert offset.abs().tolist() == [0.0] * 3


def test_logit_adjust_makes_the_logits_of_the_prior_equal() -> None:
    _, offset = LogitAdjust().affine({"tau": torch.tensor(1.0)}, COUNTS, None, None)
    assert ((COUNTS / 10).log() + offset).softmax(dim=0).tolist() == pytest.approx([1 / 3] * 3)


def test_logit_adjust_a_prior_that_does_not_fit_the_classes() -> None:
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
def test_logit_adjust_values_out_of_range_are_rejected(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        POST_HOC.parse({"kind": "logit_adjust", field: value})


TAU_NORM_COUNTS = torch.tensor([100, 10, 1])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 1.9])
@pytest.mark.parametrize("bias", ["drop", "keep"])
def test_tau_norm_equals_the_division_of_rows(bias: str, tau: float) -> None:
    features, weight, offset = draw(20, 5), draw(3, 5, seed=1), draw(3, seed=2)
    norms = weight.norm(dim=1)
    scale, shift = TauNorm(bias=bias).affine({"tau": torch.tensor(tau)}, TAU_NORM_COUNTS, norms, offset)  # type: ignore[arg-type]
    expected = features @ (weight / norms.unsqueeze(1) ** tau).T + (offset if bias == "keep" else 0)
    torch.testing.assert_close(scale * (features @ weight.T + offset) + shift, expected)


def test_tau_norm_by_hand() -> None:
    scale, shift = TauNorm().affine(
        {"tau": torch.tensor(2.0)}, TAU_NORM_COUNTS, torch.tensor([2.0, 0.5]), torch.tensor([8.0, 1.0])
    )
    assert scale.tolist() == [0.25, 4.0]
    assert shift.tolist() == [-2.0, -4.0]


@pytest.mark.parametrize(
    ("field", "value", "message"), [("tau", -0.1, r"tau: must be at least 0"), ("bias", "half", "bias: must be 'drop'")]
)
def test_tau_norm_values_out_of_range_are_rejected(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("'", "['\"]")):
        POST_HOC.parse({"kind": "tau_norm", field: value})
