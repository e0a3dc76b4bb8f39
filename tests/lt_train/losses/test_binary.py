"""Binary cross entropy on softmax or sigmoid probabilities: the original mean over N K, without cancellation."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lt_train.losses import BinarySigmoid, BinarySoftmax, Loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def original(logits: Tensor, labels: Tensor, weight: Tensor, form: type[Loss]) -> Tensor:
    """As in the code of LTWB: one weight per row by true class, and the mean of torch over N K."""
    one_hot = functional.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    weights = weight[labels].unsqueeze(1).expand_as(logits)
    if form is BinarySigmoid:
        return functional.binary_cross_entropy_with_logits(logits, one_hot, weight=weights)
    return functional.binary_cross_entropy(logits.softmax(dim=1), one_hot, weight=weights)


@pytest.mark.parametrize("form", [BinarySoftmax, BinarySigmoid])
@pytest.mark.parametrize("classes", [2, 3, 50])
def test_the_mean_over_a_batch_is_the_originals(classes: int, form: type[BinarySoftmax | BinarySigmoid]) -> None:
    logits, labels = (3 * draw(40, classes)).requires_grad_(), torch.arange(40) % classes
    weight = draw(classes, seed=1).exp()
    expected = original(logits, labels, weight, form)
    (slopes,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(form(weight)(logits, labels).mean(), expected)
    loss, gradient = form(weight).with_gradient(logits.detach(), labels, 1 / 40)
    torch.testing.assert_close(loss.mean(), expected.detach())
    torch.testing.assert_close(gradient, slopes)


def test_by_hand() -> None:
    # softmax = (1/8, 1/4, 5/8) and sigmoid = (1/2, 2/3, 5/6).
    logits, labels = torch.tensor([[0.0, math.log(2), math.log(5)]], dtype=torch.float64), torch.tensor([1])
    softmax = -(math.log(7 / 8) + math.log(1 / 4) + math.log(3 / 8)) / 3
    sigmoid = -(math.log(1 / 2) + math.log(2 / 3) + math.log(1 / 6)) / 3
    assert BinarySoftmax()(logits, labels).item() == pytest.approx(softmax)
    assert BinarySigmoid()(logits, labels).item() == pytest.approx(sigmoid)
    assert BinarySoftmax(torch.tensor([1.0, 5.0, 1.0]))(logits, labels).item() == pytest.approx(5 * softmax)
    assert BinarySigmoid(torch.tensor([1.0, 5.0, 1.0]))(logits, labels).item() == pytest.approx(5 * sigmoid)


@pytest.mark.parametrize("lead", [0.5, 5.0, 17.0, 30.0, 60.0, 85.0])
def test_small_probabilities_are_not_lost_in_float32(lead: float) -> None:
    """One class has nearly all the probability; the loss of torch loses 1 - p when the logit leads by more than 17."""
    logits = torch.tensor([[lead, 0.0, -1.0, -0.5], [3.0, lead + 3.0, 2.0, 1.0]])
    for labels in (torch.tensor([1, 2]), torch.tensor([0, 1])):
        double = logits.double().requires_grad_()
        expected = BinarySoftmax()(double, labels)
        (slopes,) = torch.autograd.grad(expected.sum(), double)
        loss, gradient = BinarySoftmax().with_gradient(logits, labels)
        torch.testing.assert_close(loss, expected.detach().float(), rtol=2e-5, atol=2e-7)
        torch.testing.assert_close(gradient, slopes.float(), rtol=2e-5, atol=1e-15)
        torch.testing.assert_close(BinarySoftmax()(logits, labels), expected.detach().float(), rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("equal", [0.0, 7.0, -100.0])
def test_ties_for_the_top(equal: float) -> None:
    for logits in (torch.full((3, 3), equal), torch.tensor([[equal, equal, equal - 2.0]] * 3)):
        labels, double = torch.arange(3), logits.double().requires_grad_()
        expected = original(double, labels, torch.ones(3, dtype=torch.float64), BinarySoftmax) * 3
        (slopes,) = torch.autograd.grad(expected, double)
        loss, gradient = BinarySoftmax().with_gradient(logits, labels)
        torch.testing.assert_close(loss.double().sum(), expected.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient.double(), slopes, rtol=1e-5, atol=1e-6)


def test_with_two_classes_softmax_is_cross_entropy() -> None:
    logits, labels = 3 * draw(30, 2), torch.arange(30) % 2
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(BinarySoftmax()(logits, labels), expected)
