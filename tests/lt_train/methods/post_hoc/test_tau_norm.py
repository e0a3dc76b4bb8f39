"""tau-normalisation as a map of logits is the division of rows it stands for."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.post_hoc.base import POST_HOC
from lt_train.methods.post_hoc.tau_norm import TauNorm

COUNTS = torch.tensor([100, 10, 1])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 1.9])
@pytest.mark.parametrize("bias", ["drop", "keep"])
def test_it_is_the_division_of_the_rows(bias: str, tau: float) -> None:
    features, weight, offset = draw(20, 5), draw(3, 5, seed=1), draw(3, seed=2)
    norms = weight.norm(dim=1)
    scale, shift = TauNorm(bias=bias).affine({"tau": torch.tensor(tau)}, COUNTS, norms, offset)  # type: ignore[arg-type]
    expected = features @ (weight / norms.unsqueeze(1) ** tau).T + (offset if bias == "keep" else 0)
    torch.testing.assert_close(scale * (features @ weight.T + offset) + shift, expected)


def test_by_hand() -> None:
    scale, shift = TauNorm().affine(
        {"tau": torch.tensor(2.0)}, COUNTS, torch.tensor([2.0, 0.5]), torch.tensor([8.0, 1.0])
    )
    assert scale.tolist() == [0.25, 4.0]
    assert shift.tolist() == [-2.0, -4.0]


def test_a_whole_grid_of_tau_at_once() -> None:
    grid, norms, bias = torch.linspace(0, 2, 21).view(1, 1, 21, 1), draw(3).abs(), draw(3, seed=1)
    scale, shift = TauNorm().affine({"tau": grid}, COUNTS, norms.view(1, 1, 1, 3), bias.view(1, 1, 1, 3))
    assert scale.shape == shift.shape == (1, 1, 21, 3)
    for place, tau in enumerate(grid.flatten()):
        alone = TauNorm().affine({"tau": tau}, COUNTS, norms, bias)
        torch.testing.assert_close((scale[0, 0, place], shift[0, 0, place]), alone)


@pytest.mark.parametrize(
    ("field", "value", "message"), [("tau", -0.1, r"tau: must be at least 0"), ("bias", "half", "bias: must be 'drop'")]
)
def test_values_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("'", "['\"]")):
        POST_HOC.parse({"kind": "tau_norm", field: value})
