"""Methods that change how much an image counts: balanced batches, focal loss, and weights by class."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses import BinarySigmoid, BinarySoftmax, CrossEntropy, FocalLoss, effective_number_weights
from lt_train.methods import CE, CRT, LTWB, ClassBalanced, Focal, Resample
from lt_train.methods.base import METHODS


def test_resample_is_ce_with_another_sampler() -> None:
    found, plain = Resample().model_dump(), CE().model_dump()
    assert {name for name in found if found[name] != plain[name]} == {"kind", "sampler"}
    assert found["sampler"] == {"kind": "class_balanced"}


def test_resample_has_a_fixed_sampler() -> None:
    with pytest.raises(SpecError, match=r"resample\.sampler\.kind: unknown kind .instance.; known: class_balanced"):
        METHODS.parse({"kind": "resample", "sampler": {"kind": "instance"}})


def test_crt_is_resample_from_a_random_head() -> None:
    found, warm = CRT().model_dump(), Resample().model_dump()
    assert {name for name in found if found[name] != warm[name]} == {"kind", "init"}
    assert found["init"] == "random"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"init": "checkpoint"}, r"crt\.init: must be .random., got .checkpoint"),
        ({"sampler": {"kind": "instance"}}, "known: class_balanced"),
        ({"head": "disalign"}, "disalign re-scales a trained classifier; init must be checkpoint, got random"),
    ],
)
def test_crt_has_a_fixed_start_and_sampler(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "crt", **document})


def test_focal_gamma_differs_by_lane() -> None:
    assert Focal().lane_values()["gamma"] == 2.0
    loss = Focal().loss({"gamma": torch.tensor([[[0.0, 1.0]]])}, torch.ones(2))
    assert isinstance(loss, FocalLoss)
    # p_y = 1/2: log 2, and half of it.
    found = loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[0]]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([1.0, 0.5]) * torch.tensor(2.0).log())


def test_focal_negative_gamma_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"focal\.gamma: must be at least 0, got -0\.5"):
        METHODS.parse({"kind": "focal", "gamma": -0.5})
    assert Focal(gamma=0.0).gamma == 0.0


COUNTS = torch.tensor([500, 60, 5, 1])


def test_weights_by_hand() -> None:
    # Effective numbers of 3 and 1 images at beta 1/2: 7/4 and 1. Their inverses, scaled to sum 2: 8/11 and 14/11.
    found = effective_number_weights(torch.tensor(0.5), torch.tensor([3, 1]))
    assert found.tolist() == pytest.approx([8 / 11, 14 / 11])


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999, 0.999999])
def test_weights_sum_to_the_number_of_classes_and_fall_with_size(beta: float) -> None:
    weights = effective_number_weights(torch.tensor(beta), COUNTS)
    assert weights.sum().item() == pytest.approx(4)
    assert (weights.diff() > 0).all().item() == (beta > 0)


def test_limits_of_beta() -> None:
    assert effective_number_weights(torch.tensor(0.0), COUNTS).tolist() == [1.0] * 4
    # beta -> 1 is weighting by 1 / n.
    inverse = 1 / COUNTS.double()
    near_one = effective_number_weights(torch.tensor(1 - 1e-9, dtype=torch.float64), COUNTS)
    torch.testing.assert_close(near_one, inverse * 4 / inverse.sum(), rtol=1e-6, atol=0)


def test_every_lane_has_its_own_beta() -> None:
    beta = torch.tensor([[[0.0, 0.9, 0.9999]], [[0.5, 0.99, 0.999]]])
    weights = effective_number_weights(beta, COUNTS)
    assert weights.shape == (2, 1, 3, 4)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights[1, 0, 2], effective_number_weights(torch.tensor(0.999), COUNTS))


def test_weights_of_a_beta_in_float32_are_computed_in_double() -> None:
    beta, counts = torch.tensor(0.99999), torch.tensor([3, 2, 1])
    expected = effective_number_weights(beta.double(), counts).float()
    torch.testing.assert_close(effective_number_weights(beta, counts), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("bce_softmax", BinarySoftmax), ("sigmoid", BinarySigmoid), ("ce", CrossEntropy), ("focal", FocalLoss)],
)
def test_class_balanced_modes(mode: str, form: type) -> None:
    method = METHODS.parse({"kind": "class_balanced", "mode": mode} | ({"gamma": 1.5} if mode == "focal" else {}))
    assert isinstance(method, ClassBalanced)
    loss = method.loss({"beta": torch.tensor(0.99), "gamma": torch.tensor(1.5)}, COUNTS)
    assert isinstance(loss, form)
    torch.testing.assert_close(loss.weight, effective_number_weights(torch.tensor(0.99), COUNTS))  # type: ignore[attr-defined]
    if isinstance(loss, FocalLoss):
        torch.testing.assert_close(loss.gamma, torch.tensor([1.5]))


def test_class_balanced_defaults() -> None:
    method = ClassBalanced()
    assert (method.mode, method.beta, method.gamma) == ("bce_softmax", 0.9999, 2.0)
    assert {"beta", "gamma"} <= set(method.lane_values())
    assert method.static_fields()["mode"] == "bce_softmax"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("beta", 1.0, r"class_balanced\.beta: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"),
        ("beta", -0.1, r"class_balanced\.beta: must be in \[0(\.0)?, 1(\.0)?\), got -0\.1"),
        ("gamma", -1.0, r"class_balanced\.gamma: must be at least 0, got -1\.0"),
        (
            "mode",
            "softmax",
            r"class_balanced\.mode: must be .bce_softmax. or .sigmoid. or .ce. or .focal., got .softmax",
        ),
    ],
)
def test_class_balanced_values_out_of_range_are_rejected(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "class_balanced", field: value})


def test_class_balanced_a_class_without_images_is_rejected() -> None:
    assert "2 of 4 have none: 1, 2" in ClassBalanced().incompatibility(torch.tensor([5, 0, 0, 1]))


def test_class_balanced_unused_gamma_is_rejected() -> None:
    with pytest.raises(SpecError, match="gamma is the exponent of mode focal and changes nothing in mode ce; leave it"):
        METHODS.parse({"kind": "class_balanced", "mode": "ce", "gamma": 1.0})


def test_beta_that_rounds_to_1_in_float32_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"beta must not round to 1 in float32, got 0\.99999999"):
        METHODS.parse({"kind": "class_balanced", "beta": 0.99999999})


def test_a_rate_that_rounds_to_0_in_float32_is_rejected() -> None:
    with pytest.raises(SpecError, match="lr must not round to 0 in float32, got 1e-50"):
        METHODS.parse({"kind": "class_balanced", "lr": 1e-50})


def test_ltwb_is_class_balanced_with_constraint_and_weight_decay() -> None:
    found, weighted = LTWB().model_dump(), ClassBalanced().model_dump()
    assert {name for name in found if found[name] != weighted[name]} == {"kind", "constraint", "lr", "weight_decay"}
    assert (found["lr"], found["weight_decay"]) == (0.01, 0.1)
    assert found["constraint"] == {"kind": "maxnorm", "every": "epoch", "fraction": 0.1}


def test_ltwb_has_the_loss_of_class_balanced() -> None:
    counts, lanes = torch.tensor([500, 60, 1]), {"beta": torch.tensor(0.9), "gamma": torch.tensor(2.0)}
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    found, expected = (method.loss(lanes, counts)(logits, labels) for method in (LTWB(), ClassBalanced()))
    assert torch.equal(found, expected)


def test_ltwb_rejected_values() -> None:
    assert "1 of 2 have none: 0" in LTWB().incompatibility(torch.tensor([0, 3]))
    with pytest.raises(SpecError, match=r"ltwb\.beta: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"):
        METHODS.parse({"kind": "ltwb", "beta": 1.0})
    with pytest.raises(SpecError, match=r"ltwb\.constraint: must be a mapping"):
        METHODS.parse({"kind": "ltwb", "constraint": None})
