"""Smoothed cross entropy: by hand, against torch's own, by finite differences, and at its optimum."""

import math

import pytest
import torch
from torch.nn import functional

from lt_train.losses.cross_entropy import cross_entropy


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    # softmax = (1/4, 3/4); d = 1/2 and K = 2 make the target of class 0 (3/4, 1/4).
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([0])
    assert cross_entropy(logits, labels).item() == pytest.approx(math.log(4))
    expected = 0.75 * math.log(4) + 0.25 * math.log(4 / 3)
    assert cross_entropy(logits, labels, 0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("smooth_factor", [0.0, 0.1, 0.5, 0.98, 0.99])
@pytest.mark.parametrize("classes", [2, 5, 100])
def test_is_torchs_label_smoothing(classes: int, smooth_factor: float) -> None:
    logits, labels = 3 * draw(30, classes), torch.arange(30) % classes
    expected = functional.cross_entropy(logits, labels, label_smoothing=smooth_factor, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, labels, smooth_factor), expected)
    assert bool((expected >= 0).all())


def test_zero_smoothing_is_plain_cross_entropy() -> None:
    logits, labels = draw(20, 7), torch.arange(20) % 7
    plain = logits.logsumexp(dim=1) - logits[torch.arange(20), labels]
    torch.testing.assert_close(cross_entropy(logits, labels, 0.0), plain)
    torch.testing.assert_close(cross_entropy(logits, labels), plain)


def test_full_smoothing_forgets_the_label() -> None:
    logits = draw(1, 7).expand(7, 7)
    losses = cross_entropy(logits, torch.arange(7), 1 - 1e-12)
    torch.testing.assert_close(losses, losses[:1].expand(7))


@pytest.mark.parametrize("smooth_factor", [0.0, 0.3, 0.98])
def test_gradient_by_finite_differences(smooth_factor: float) -> None:
    labels = torch.tensor([0, 2, 1, 3])
    assert torch.autograd.gradcheck(
        lambda logits: cross_entropy(logits, labels, smooth_factor), draw(4, 4).requires_grad_()
    )


def test_every_lane_has_its_own_smooth_factor() -> None:
    seeds, batch, lanes, classes = 2, 5, 3, 4
    logits = draw(seeds, batch, lanes, classes)
    labels = torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])
    smooth_factors = torch.tensor([[[0.0, 0.5, 0.98]], [[0.9, 0.2, 0.7]]], dtype=torch.float64)
    losses = cross_entropy(logits, labels.unsqueeze(-1), smooth_factors)
    assert losses.shape == (seeds, batch, lanes)
    for s in range(seeds):
        for t in range(lanes):
            alone = functional.cross_entropy(
                logits[s, :, t], labels[s], label_smoothing=float(smooth_factors[s, 0, t]), reduction="none"
            )
            torch.testing.assert_close(losses[s, :, t], alone)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert cross_entropy(logits, torch.tensor([1]), 0.5).item() == pytest.approx(0.5 * 2e4 + 0.5 * 1e4)


@pytest.mark.parametrize(
    ("classes", "smooth_factor", "margin"), [(100, 0.98, 1.112), (10, 0.5, 2.398), (2, 0.9, 0.2007)]
)
def test_the_optimum_has_the_margin_of_the_formula(classes: int, smooth_factor: float, margin: float) -> None:
    assert math.log(1 + classes * (1 - smooth_factor) / smooth_factor) == pytest.approx(margin, abs=5e-4)
    labels = torch.arange(classes)
    logits = draw(classes, classes).requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(logits, labels, smooth_factor).sum()
        loss.backward()
        return loss

    optimizer.step(evaluate)
    own = torch.eye(classes, dtype=torch.bool)
    gaps = (logits.diagonal().unsqueeze(1) - logits)[~own]
    torch.testing.assert_close(gaps, torch.full_like(gaps, margin), atol=1e-3, rtol=0)
