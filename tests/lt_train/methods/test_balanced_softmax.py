"""`balanced_softmax`: class sizes are added in training, and nothing at evaluation."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.balanced_softmax import BalancedSoftmax
from lt_train.methods.base import METHODS


def test_a_head_without_opinion_is_at_its_optimum_on_the_training_set() -> None:
    """With equal logits the loss already predicts the class frequencies: its gradient over the training set is 0."""
    counts = torch.tensor([8, 3, 1])
    labels = torch.arange(3).repeat_interleave(counts)
    _, gradient = BalancedSoftmax().loss({}, counts).with_gradient(torch.zeros(12, 3), labels)
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(3), atol=1e-5, rtol=0)


def test_what_is_refused() -> None:
    assert BalancedSoftmax().incompatibility(torch.tensor([5, 1])) == ""
    assert "1 of 2 have none: 1" in BalancedSoftmax().incompatibility(torch.tensor([5, 0]))
    with pytest.raises(SpecError, match="and post_hoc logit_adjust would each correct for class frequencies"):
        METHODS.parse({"kind": "balanced_softmax", "post_hoc": "logit_adjust"})
    with pytest.raises(SpecError, match=r"balanced_softmax\.tau: unknown key"):
        METHODS.parse({"kind": "balanced_softmax", "tau": 1.0})
