"""`los`: the more smoothing, the smaller Logits Magnitude."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses.base import Loss
from lt_train.methods.base import METHODS, TrainedMethod
from lt_train.metrics.accuracy import LogitStatistics


def loss_of(smooth_factor: float) -> Loss:
    method = METHODS.parse({"kind": "los", "smooth_factor": smooth_factor})
    assert isinstance(method, TrainedMethod)
    return method.loss({"smooth_factor": torch.tensor(smooth_factor)}, torch.ones(4))


def test_the_loss_is_torchs_label_smoothing() -> None:
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(loss_of(0.3)(logits, labels), expected)


def test_more_smoothing_gives_smaller_magnitudes() -> None:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(torch.tensor([200, 60, 20, 6]))
    features = (2 * torch.randn(4, 8, generator=stream))[labels] + torch.randn(len(labels), 8, generator=stream)
    magnitudes = []
    for smooth_factor in (0.0, 0.5, 0.9, 0.98):
        head, loss = torch.zeros(8, 4), loss_of(smooth_factor)
        for _ in range(200):
            _, gradient = loss.with_gradient(features @ head, labels)
            head -= 0.1 * features.T @ gradient / len(labels)
        magnitudes.append(LogitStatistics(4).update(features @ head, labels).loma())
    for smoother, rougher in zip(magnitudes[1:], magnitudes[:-1], strict=True):
        assert bool((smoother < rougher).all())


def test_the_papers_smooth_factor_is_the_default_and_may_differ_by_lane() -> None:
    method = METHODS.parse({"kind": "los"})
    assert method.model_dump()["smooth_factor"] == 0.98
    assert method.lane_values()["smooth_factor"] == 0.98
    assert "smooth_factor" not in method.static_fields()


def test_it_needs_no_class_counts() -> None:
    assert METHODS.parse({"kind": "los"}).incompatibility(torch.tensor([5, 0])) == ""


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5])
def test_a_smooth_factor_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(SpecError, match=rf"los\.smooth_factor: must be in \[0(\.0)?, 1(\.0)?\), got {value}"):
        METHODS.parse({"kind": "los", "smooth_factor": value})


@pytest.mark.parametrize("value", [0.0, 0.999])
def test_the_ends_that_are_allowed(value: float) -> None:
    assert METHODS.parse({"kind": "los", "smooth_factor": value}).model_dump()["smooth_factor"] == value
