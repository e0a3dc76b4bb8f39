"""`ce`, `los` and `las`: cross entropy with plain or smoothed labels."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses import CrossEntropy, Loss
from lt_train.methods import LAS
from lt_train.methods.base import METHODS, TrainedMethod, TrainingSpec
from lt_train.metrics.logits import LogitStatistics


def test_ce_equals_torch() -> None:
    method = METHODS.parse({"kind": "ce"})
    assert isinstance(method, TrainedMethod)
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(method.loss({}, torch.ones(4))(logits, labels), expected)


def test_ce_defaults_are_the_protocol_of_the_paper() -> None:
    method = METHODS.parse({"kind": "ce"})
    assert method.model_dump() == {
        "kind": "ce",
        "lr": 5e-4,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "init": "checkpoint",
        "head": {"kind": "linear"},
        "sampler": {"kind": "instance"},
        "constraint": None,
        "post_hoc": None,
    }
    assert method.lane_values() == {"lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9}
    assert set(method.static_fields()) == {"kind", "init", "head", "sampler", "constraint", "post_hoc"}
    assert TrainingSpec().model_dump() == {"epochs": 20, "batch_size": 64, "matmul": "float32"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", 0.0, r"ce\.lr: must be above 0"),
        ("weight_decay", -1e-9, r"ce\.weight_decay: must be at least 0"),
        ("momentum", 1.0, r"ce\.momentum: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"),
        ("init", "hot", r"ce\.init: must be .checkpoint."),
        ("smooth_factor", 0.5, r"ce\.smooth_factor: unknown key"),
    ],
)
def test_ce_values_out_of_range_are_rejected(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "ce", field: value})


def loss_of(smooth_factor: float) -> Loss:
    method = METHODS.parse({"kind": "los", "smooth_factor": smooth_factor})
    assert isinstance(method, TrainedMethod)
    return method.loss({"smooth_factor": torch.tensor(smooth_factor)}, torch.ones(4))


def test_los_equals_label_smoothing_of_torch() -> None:
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(loss_of(0.3)(logits, labels), expected)


def test_los_more_smoothing_gives_smaller_magnitudes() -> None:
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


def test_los_default_is_from_the_paper_and_may_differ_by_lane() -> None:
    method = METHODS.parse({"kind": "los"})
    assert method.model_dump()["smooth_factor"] == 0.98
    assert method.lane_values()["smooth_factor"] == 0.98
    assert "smooth_factor" not in method.static_fields()


def test_los_needs_no_class_counts() -> None:
    assert METHODS.parse({"kind": "los"}).incompatibility(torch.tensor([5, 0])) == ""


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5])
def test_los_smooth_factor_out_of_range_is_rejected(value: float) -> None:
    with pytest.raises(SpecError, match=rf"los\.smooth_factor: must be in \[0(\.0)?, 1(\.0)?\), got {value}"):
        METHODS.parse({"kind": "los", "smooth_factor": value})


@pytest.mark.parametrize("value", [0.0, 0.999])
def test_los_smooth_factor_at_the_bounds(value: float) -> None:
    assert METHODS.parse({"kind": "los", "smooth_factor": value}).model_dump()["smooth_factor"] == value


def factors(head: float, tail: float, counts: list[int]) -> list[float]:
    lanes = {"smooth_head": torch.tensor(head), "smooth_tail": torch.tensor(tail)}
    loss = LAS().loss(lanes, torch.tensor(counts))
    assert isinstance(loss, CrossEntropy)
    assert isinstance(loss.smooth_factor, torch.Tensor)
    return loss.smooth_factor.tolist()


def test_las_by_hand() -> None:
    # 1/3 and 1/2 of the way from 4 to 100 images: sin 30 deg = 1/2 and sin 45 deg.
    found = factors(0.4, 0.1, [100, 36, 52, 4])
    assert found == pytest.approx([0.4, 0.25, 0.1 + 0.3 / math.sqrt(2), 0.1])


def test_las_head_may_be_below_tail() -> None:
    assert factors(0.1, 0.4, [100, 36, 4]) == pytest.approx([0.1, 0.25, 0.4])


def test_las_classes_of_equal_size_are_all_large() -> None:
    assert factors(0.4, 0.1, [7, 7, 7]) == pytest.approx([0.4] * 3)


def test_las_an_empty_class_is_the_smallest() -> None:
    assert factors(0.4, 0.1, [100, 0]) == pytest.approx([0.4, 0.1])
    assert LAS().incompatibility(torch.tensor([100, 0])) == ""


def test_las_defaults_and_rejected_values() -> None:
    method = LAS()
    assert method.lane_values() == {
        "lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "smooth_head": 0.4, "smooth_tail": 0.1
    }  # fmt: skip
    assert (method.head.kind, method.sampler.kind) == ("linear", "class_balanced")
    described = LAS.model_fields["smooth_head"].description
    assert described == "smooth factor of the largest class, in [0, 1)"
    for name in ("smooth_head", "smooth_tail"):
        with pytest.raises(SpecError, match=rf"las\.{name}: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"):
            METHODS.parse({"kind": "las", name: 1.0})
