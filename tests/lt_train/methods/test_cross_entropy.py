"""Methods that train with cross entropy: parameters, losses by hand, limits and rejected values."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses import CrossEntropy, Loss
from lt_train.methods import CE, LAS, BalancedSoftmax, Cosine, LogitAdjustLoss, MaxNorm
from lt_train.methods.base import METHODS, TrainedMethod, TrainingSpec
from lt_train.metrics import LogitStatistics


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


def test_balanced_softmax_equal_logits_are_optimal_on_the_training_set() -> None:
    """With equal logits the loss already predicts the class frequencies: its gradient over the training set is 0."""
    counts = torch.tensor([8, 3, 1])
    labels = torch.arange(3).repeat_interleave(counts)
    _, gradient = BalancedSoftmax().loss({}, counts).with_gradient(torch.zeros(12, 3), labels)
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(3), atol=1e-5, rtol=0)


def test_balanced_softmax_rejected_values() -> None:
    assert BalancedSoftmax().incompatibility(torch.tensor([5, 1])) == ""
    assert "1 of 2 have none: 1" in BalancedSoftmax().incompatibility(torch.tensor([5, 0]))
    with pytest.raises(SpecError, match="and post_hoc logit_adjust each correct for class frequencies"):
        METHODS.parse({"kind": "balanced_softmax", "post_hoc": "logit_adjust"})
    with pytest.raises(SpecError, match=r"balanced_softmax\.tau: unknown key"):
        METHODS.parse({"kind": "balanced_softmax", "tau": 1.0})


def test_logit_adjust_loss_with_a_given_prior() -> None:
    method, zeros, labels = LogitAdjustLoss(prior=(0.5, 0.25, 0.25)), torch.zeros(3, 3), torch.arange(3)
    loss = method.loss({"tau": torch.tensor(2.0)}, torch.tensor([8, 3, 1]))
    # Squares of the prior are 4, 1 and 1 in parts of 6.
    assert loss(zeros, labels).tolist() == pytest.approx([math.log(6 / 4), math.log(6), math.log(6)])
    assert "prior" in method.static_fields()
    assert method.lane_values()["tau"] == 1.0


def test_logit_adjust_loss_rejected_values() -> None:
    assert "1 of 3 have none: 1" in LogitAdjustLoss().incompatibility(torch.tensor([5, 0, 2]))
    given = LogitAdjustLoss(prior=(0.5, 0.25, 0.25))
    assert given.incompatibility(torch.tensor([5, 0, 2])) == ""
    assert "one share for each of the 2 classes, got 3" in given.incompatibility(torch.tensor([5, 2]))
    for field, value, message in (
        ("tau", -1.0, r"tau: must be at least 0, got -1\.0"),
        ("prior", [0.5, 0.4], r"prior: shares must sum to 1 .* got a sum of 0\.9"),
        ("post_hoc", "logit_adjust", "and post_hoc logit_adjust each correct for class frequencies"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "logit_adjust_loss", field: value})


COUNTS = torch.tensor([10000, 625, 16])
"""Fourth roots 10, 5 and 2: margins are 1/5, 2/5 and 1 of the largest."""


def losses(document: dict[str, object]) -> list[float]:
    method = METHODS.parse({"kind": "ldam", **document})
    assert isinstance(method, TrainedMethod)
    lanes = {name: torch.tensor(value) for name, value in method.lane_values().items()}
    return [float(x) for x in method.loss(lanes, COUNTS)(torch.zeros(3, 3), torch.arange(3))]


@pytest.mark.parametrize(
    ("document", "scale", "margin"),
    [
        ({}, 30, 0.5),
        ({"max_margin": 0.25}, 30, 0.25),
        ({"head": {"kind": "cosine", "scale": 8.0}}, 8, 0.5),
        ({"head": "linear"}, 1, 0.5),
        ({"head": "lws"}, 1, 0.5),
    ],
)
def test_ldam_margins(document: dict[str, object], scale: float, margin: float) -> None:
    expected = [math.log(1 + 2 * math.exp(scale * margin * part)) for part in (0.2, 0.4, 1.0)]
    assert losses(document) == pytest.approx(expected, rel=1e-5)


def test_ldam_scale_and_margin_differ_by_lane() -> None:
    method = METHODS.parse({"kind": "ldam"})
    assert isinstance(method, TrainedMethod)
    scale, margin = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[[0.5, 0.1]]])
    loss = method.loss({"head.scale": scale, "max_margin": margin}, COUNTS)(
        torch.zeros(1, 1, 2, 3), torch.tensor([[[2]]])
    )
    assert loss[0, 0].tolist() == pytest.approx(
        [math.log(1 + 2 * math.exp(5)), math.log(1 + 2 * math.exp(2))], rel=1e-5
    )


def test_ldam_defaults_and_rejected_values() -> None:
    method = METHODS.parse({"kind": "ldam"})
    assert method.lane_values() == {
        "head.scale": 30.0, "lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "max_margin": 0.5
    }  # fmt: skip
    assert "1 of 3 have none: 1" in method.incompatibility(torch.tensor([5, 0, 2]))
    with pytest.raises(SpecError, match=r"ldam\.max_margin: must be at least 0, got -0\.1"):
        METHODS.parse({"kind": "ldam", "max_margin": -0.1})


def test_cosine_searches_the_scale_of_the_head() -> None:
    method = Cosine()
    assert method.lane_values() == {"lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "head.scale": 30.0}
    assert method.static_fields()["head"] == {"kind": "cosine", "squash": False}


def test_cosine_has_a_fixed_head() -> None:
    oltr = METHODS.parse({"kind": "cosine", "head": {"kind": "cosine", "scale": 16.0, "squash": True}})
    logits = oltr.head.module((torch.eye(3), torch.ones(3)))(torch.tensor([3.0, 0.0, 0.0]))
    torch.testing.assert_close(logits.detach(), torch.tensor([12.0, 0.0, 0.0]))
    with pytest.raises(SpecError, match="known: cosine"):
        METHODS.parse({"kind": "cosine", "head": {"kind": "linear"}})
    with pytest.raises(SpecError, match=r"cosine\.head\.scale: must be above 0"):
        METHODS.parse({"kind": "cosine", "head": {"kind": "cosine", "scale": 0.0}})


def test_max_norm_is_ce_with_a_constraint() -> None:
    found, plain = MaxNorm().model_dump(), CE().model_dump()
    assert {name for name in found if found[name] != plain[name]} == {"kind", "constraint"}
    assert found["constraint"] == {"kind": "maxnorm", "every": "epoch", "fraction": 0.1}
    assert MaxNorm().lane_values()["constraint.fraction"] == 0.1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"constraint": None}, r"maxnorm\.constraint: must be a mapping"),
        ({"constraint": {"kind": "maxnorm", "fraction": 0.0}}, r"maxnorm\.constraint\.fraction: must be above 0"),
        (
            {"head": "cosine"},
            "maxnorm bounds the length of trained weight rows, and head cosine has none; use one of linear",
        ),
    ],
)
def test_max_norm_rejected_values(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "maxnorm", **document})
