"""Helpers of all losses: exponentials without overflow, tables by true class, gradients by autograd."""

import math

import pytest
import torch
from torch import Tensor

from lt_train.losses import Loss, add_at_, exponentials, label_index, of_label


class Squares(Loss):
    """`sum_k z_k^2 + z_y`, without its own gradient."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.square().sum(dim=-1, keepdim=True) + logits.gather(-1, label_index(labels, logits))).squeeze(-1)


def test_the_default_gradient_uses_autograd() -> None:
    logits, labels = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[1]])
    with torch.no_grad():
        loss, gradient = Squares().with_gradient(logits, labels, torch.tensor([[1.0, 10.0]]))
    assert loss.tolist() == [[7.0, 29.0]]
    assert gradient.tolist() == [[[2.0, 5.0], [60.0, 90.0]]]
    assert not loss.requires_grad
    assert Squares().with_gradient(logits, labels, 2.0)[1].tolist() == [[[4.0, 10.0], [12.0, 18.0]]]


def test_exponentials_are_those_of_the_distance_to_the_largest_logit() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(4)], [1e4, -1e4, 1e4]], dtype=torch.float64)
    powers, total, peak = exponentials(logits)
    torch.testing.assert_close(powers, torch.tensor([[0.25, 0.5, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(total, torch.tensor([[1.75], [2.0]], dtype=torch.float64))
    torch.testing.assert_close(peak, torch.tensor([[math.log(4)], [1e4]], dtype=torch.float64))
    assert logits[0, 0] == 0.0, "the logits must not change"


@pytest.mark.parametrize("size", [3.3, 1e4, 1e30])
def test_the_largest_logit_has_exactly_the_exponential_1(size: float) -> None:
    logits = size * torch.tensor([[1.0, -1.0, 0.3], [-1.0, -1.4, -1.8]])
    powers, total, _ = exponentials(logits)
    assert powers[:, 0][0].item() == powers[1, 0].item() == 1.0
    assert bool(((total >= 1.0) & (total < 2.0)).all())


def test_float32_exponentials_are_torchs_softmax() -> None:
    logits = 20 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) + 300
    powers, total, peak = exponentials(logits)
    torch.testing.assert_close(powers / total, logits.double().softmax(dim=-1).float(), rtol=3e-5, atol=1e-12)
    log_sum = (peak + total.log()).squeeze(-1)
    torch.testing.assert_close(log_sum, logits.double().logsumexp(dim=-1).float(), rtol=1e-6, atol=0)


def test_tables_are_looked_up_by_true_class_and_lane() -> None:
    logits, labels = torch.zeros(2, 2, 3, 4), torch.tensor([[[0], [3]], [[2], [2]]])
    index = label_index(labels, logits)
    assert index.shape == (2, 2, 3, 1)
    by_class = of_label(torch.arange(4.0), index, logits)
    assert isinstance(by_class, Tensor)
    assert by_class[..., 0].tolist() == [[[0.0] * 3, [3.0] * 3], [[2.0] * 3, [2.0] * 3]]
    by_both = of_label(torch.arange(24.0).view(2, 1, 3, 4), index, logits)
    assert isinstance(by_both, Tensor)
    assert by_both[..., 0].tolist() == [[[0.0, 4.0, 8.0], [3.0, 7.0, 11.0]], [[14.0, 18.0, 22.0], [14.0, 18.0, 22.0]]]
    column = torch.arange(6.0).view(2, 1, 3, 1)
    assert of_label(column, index, logits) is column
    assert of_label(0.5, index, logits) == 0.5


def test_amounts_are_added_in_place_at_the_true_class() -> None:
    values, index = torch.zeros(2, 3), torch.tensor([[2], [0]])
    assert add_at_(values, index, 1.5) is values
    add_at_(values, index, torch.tensor([[1.0], [10.0]], dtype=torch.float64))
    assert values.tolist() == [[0.0, 0.0, 2.5], [11.5, 0.0, 0.0]]
