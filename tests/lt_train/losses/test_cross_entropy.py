"""Cross entropy and focal loss: by hand, against torch, and for tables that differ by lane and class."""

import math

import pytest
import torch
from torch.nn import functional

from lt_train.losses import CrossEntropy, FocalLoss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    # softmax = (1/4, 3/4); d = 1/2 and K = 2 make the target of class 0 (3/4, 1/4).
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([0])
    assert CrossEntropy()(logits, labels).item() == pytest.approx(math.log(4))
    expected = 0.75 * math.log(4) + 0.25 * math.log(4 / 3)
    assert CrossEntropy(0.5)(logits, labels).item() == pytest.approx(expected)
    # The margin log 3 takes the true logit to -log 3: softmax = (1/10, 9/10). The shift log 3 brings it back.
    margin = torch.tensor([math.log(3), 0.0])
    assert CrossEntropy(margin=margin)(logits, labels).item() == pytest.approx(math.log(10))
    assert CrossEntropy(margin=margin, shift=margin)(logits, labels).item() == pytest.approx(math.log(4))
    # A margin applies to the true class only, a shift to all classes.
    other = torch.tensor([0.0, math.log(3)])
    assert CrossEntropy(margin=other)(logits, labels).item() == pytest.approx(math.log(4))
    assert CrossEntropy(shift=other)(logits, labels).item() == pytest.approx(math.log(10))
    assert CrossEntropy(weight=torch.tensor([2.0, 5.0]))(logits, labels).item() == pytest.approx(2 * math.log(4))


def test_the_gradient_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), torch.tensor([0])
    _, plain = CrossEntropy().with_gradient(logits, labels)
    assert plain[0].tolist() == pytest.approx([1 / 4 - 1, 3 / 4])
    _, smoothed = CrossEntropy(torch.tensor([0.5], dtype=torch.float64)).with_gradient(logits, labels, 4.0)
    assert smoothed[0].tolist() == pytest.approx([4 * (1 / 4 - 3 / 4), 4 * (3 / 4 - 1 / 4)])


@pytest.mark.parametrize("smooth_factor", [0.0, 0.1, 0.5, 0.98, 0.99])
@pytest.mark.parametrize("classes", [2, 5, 100])
def test_equals_label_smoothing_of_torch(classes: int, smooth_factor: float) -> None:
    logits, labels = 3 * draw(30, classes), torch.arange(30) % classes
    expected = functional.cross_entropy(logits, labels, label_smoothing=smooth_factor, reduction="none")
    torch.testing.assert_close(CrossEntropy(smooth_factor)(logits, labels), expected)
    assert bool((expected >= 0).all())


def test_weights_are_torchs_before_it_divides_by_their_sum() -> None:
    logits, labels, weight = draw(20, 7), torch.arange(20) % 7, torch.arange(1.0, 8.0, dtype=torch.float64)
    expected = functional.cross_entropy(logits, labels, weight=weight, reduction="none")
    torch.testing.assert_close(CrossEntropy(weight=weight)(logits, labels), expected)


def test_full_smoothing_is_independent_of_the_label() -> None:
    logits = draw(1, 7).expand(7, 7)
    losses = CrossEntropy(1 - 1e-12)(logits, torch.arange(7))
    torch.testing.assert_close(losses, losses[:1].expand(7))


def test_a_number_a_column_and_a_table_are_equivalent() -> None:
    logits, labels, classes = draw(2, 5, 3, 4), torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])[..., None], 4
    for name, value in (("smooth_factor", 0.3), ("margin", 0.7), ("weight", 2.5)):
        forms = [
            value,
            *(torch.full(shape, value) for shape in ((), (1,), (classes,), (2, 1, 3, 1), (2, 1, 3, classes))),
        ]
        found = [CrossEntropy(**{name: form}) for form in forms]
        for loss in found[1:]:
            torch.testing.assert_close(loss(logits, labels), found[0](logits, labels), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(
                loss.with_gradient(logits, labels), found[0].with_gradient(logits, labels), rtol=1e-6, atol=1e-6
            )


def test_every_lane_and_class_has_its_own_tables() -> None:
    seeds, batch, lanes, classes = 2, 5, 3, 4
    logits = draw(seeds, batch, lanes, classes)
    labels = torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])
    smooth, shift, margin, weight = (draw(seeds, 1, lanes, classes, seed=seed).sigmoid() for seed in (1, 2, 3, 4))
    losses = CrossEntropy(smooth, shift, margin, weight)(logits, labels[..., None])
    assert losses.shape == (seeds, batch, lanes)
    for s in range(seeds):
        for b in range(batch):
            for t in range(lanes):
                y = int(labels[s, b])
                moved = logits[s, b, t] + shift[s, 0, t]
                moved[y] -= margin[s, 0, t, y]
                target = torch.full((classes,), float(smooth[s, 0, t, y]) / classes, dtype=torch.float64)
                target[y] += 1 - smooth[s, 0, t, y]
                expected = -weight[s, 0, t, y] * (target * moved.log_softmax(dim=0)).sum()
                torch.testing.assert_close(losses[s, b, t], expected)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    expected = 0.5 * 2e4 + 0.5 * 1e4
    assert CrossEntropy(0.5)(logits, torch.tensor([1])).item() == pytest.approx(expected)
    loss, gradient = CrossEntropy(torch.tensor([0.5])).with_gradient(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(expected)
    assert gradient[0].tolist() == pytest.approx([1 - 1 / 6, -4 / 6, -1 / 6])


def focal_draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_focal_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3)]] * 2, dtype=torch.float64), torch.tensor([0, 1])
    assert FocalLoss(2.0)(logits, labels).tolist() == pytest.approx([9 / 16 * math.log(4), 1 / 16 * math.log(4 / 3)])
    weighted = FocalLoss(1.0, torch.tensor([2.0, 8.0]))(logits, labels)
    assert weighted.tolist() == pytest.approx([1.5 * math.log(4), 2 * math.log(4 / 3)])


def test_the_gradient_goes_through_the_factor() -> None:
    # L = -(1 - p)^2 log p at p = 1/4: dL/dp = 2 (1 - p) log p - (1 - p)^2 / p, and dp/dz_0 = p (1 - p).
    logits, labels = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), torch.tensor([0])
    slope = (1.5 * math.log(1 / 4) - 9 / 4) * 3 / 16
    _, gradient = FocalLoss(2.0).with_gradient(logits, labels)
    assert gradient[0].tolist() == pytest.approx([slope, -slope])
    alone = 9 / 16 * (1 / 4 - 1)
    assert gradient[0, 0].item() != pytest.approx(alone, rel=0.1), "the gradient must include that of the factor"


def test_gamma_0_is_cross_entropy() -> None:
    logits, labels = 3 * focal_draw(30, 5), torch.arange(30) % 5
    torch.testing.assert_close(FocalLoss(0.0)(logits, labels), CrossEntropy()(logits, labels))
    torch.testing.assert_close(
        FocalLoss(0.0).with_gradient(logits, labels), CrossEntropy().with_gradient(logits, labels)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.999, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_image_has_no_loss_and_no_gradient(dtype: torch.dtype, gamma: float) -> None:
    # p_y rounds to 1; 0.1 * 3 makes the largest exponential less than 1 in float64.
    for lead in (20.0, 40.0, 90.0, 200.0, 0.1 * 3 + 40):
        logits = torch.tensor([[lead, 0.0, -1.0], [lead + 7.7, 7.7, 6.7]], dtype=dtype, requires_grad=True)
        labels = torch.tensor([0, 0])
        loss = FocalLoss(gamma)(logits, labels)
        (slopes,) = torch.autograd.grad(loss.sum(), logits)
        by_hand = FocalLoss(gamma).with_gradient(logits.detach(), labels)
        for found in (loss.detach(), slopes, *by_hand):
            torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-5)


def test_every_lane_has_its_own_gamma() -> None:
    logits, labels = focal_draw(2, 5, 3, 4), torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])
    gamma = focal_draw(2, 1, 3, 1, seed=1).exp()
    losses = FocalLoss(gamma)(logits, labels[..., None])
    for s in range(2):
        for t in range(3):
            torch.testing.assert_close(losses[s, :, t], FocalLoss(float(gamma[s, 0, t]))(logits[s, :, t], labels[s]))
