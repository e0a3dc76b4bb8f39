"""Focal loss: by hand, gradient through the factor, and nothing that is not a number where p_y is 1."""

import math

import pytest
import torch

from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.focal import Focal


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3)]] * 2, dtype=torch.float64), torch.tensor([0, 1])
    assert Focal(2.0)(logits, labels).tolist() == pytest.approx([9 / 16 * math.log(4), 1 / 16 * math.log(4 / 3)])
    weighted = Focal(1.0, torch.tensor([2.0, 8.0]))(logits, labels)
    assert weighted.tolist() == pytest.approx([1.5 * math.log(4), 2 * math.log(4 / 3)])


def test_the_gradient_goes_through_the_factor() -> None:
    # L = -(1 - p)^2 log p at p = 1/4: dL/dp = 2 (1 - p) log p - (1 - p)^2 / p, and dp/dz_0 = p (1 - p).
    logits, labels = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), torch.tensor([0])
    slope = (1.5 * math.log(1 / 4) - 9 / 4) * 3 / 16
    _, gradient = Focal(2.0).with_gradient(logits, labels)
    assert gradient[0].tolist() == pytest.approx([slope, -slope])
    alone = 9 / 16 * (1 / 4 - 1)
    assert gradient[0, 0].item() != pytest.approx(alone, rel=0.1), "the factor was taken for a constant"


def test_gamma_0_is_cross_entropy() -> None:
    logits, labels = 3 * draw(30, 5), torch.arange(30) % 5
    torch.testing.assert_close(Focal(0.0)(logits, labels), CrossEntropy()(logits, labels))
    torch.testing.assert_close(Focal(0.0).with_gradient(logits, labels), CrossEntropy().with_gradient(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.999, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_image_has_no_loss_and_no_gradient(dtype: torch.dtype, gamma: float) -> None:
    # The logit leads by so much that p_y rounds to 1; 0.1 * 3 makes the largest exponential less than 1 in float64.
    for lead in (20.0, 40.0, 90.0, 200.0, 0.1 * 3 + 40):
        logits = torch.tensor([[lead, 0.0, -1.0], [lead + 7.7, 7.7, 6.7]], dtype=dtype, requires_grad=True)
        labels = torch.tensor([0, 0])
        loss = Focal(gamma)(logits, labels)
        (slopes,) = torch.autograd.grad(loss.sum(), logits)
        by_hand = Focal(gamma).with_gradient(logits.detach(), labels)
        for found in (loss.detach(), slopes, *by_hand):
            torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-5)


def test_every_lane_has_its_own_gamma() -> None:
    logits, labels = draw(2, 5, 3, 4), torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])
    gamma = draw(2, 1, 3, 1, seed=1).exp()
    losses = Focal(gamma)(logits, labels[..., None])
    for s in range(2):
        for t in range(3):
            torch.testing.assert_close(losses[s, :, t], Focal(float(gamma[s, 0, t]))(logits[s, :, t], labels[s]))
