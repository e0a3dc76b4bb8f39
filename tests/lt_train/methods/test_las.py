"""`las`: labels of large classes are smoothed more, by a sine between two factors."""

import math

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import METHODS
from lt_train.methods.las import LabelAwareSmoothing


def factors(head: float, tail: float, counts: list[int]) -> list[float]:
    lanes = {"smooth_head": torch.tensor(head), "smooth_tail": torch.tensor(tail)}
    loss = LabelAwareSmoothing().loss(lanes, torch.tensor(counts))
    assert isinstance(loss, CrossEntropy)
    assert isinstance(loss.smooth_factor, torch.Tensor)
    return loss.smooth_factor.tolist()


def test_by_hand() -> None:
    # 1/3 and 1/2 of the way from 4 to 100 images: sin 30 deg = 1/2 and sin 45 deg.
    found = factors(0.4, 0.1, [100, 36, 52, 4])
    assert found == pytest.approx([0.4, 0.25, 0.1 + 0.3 / math.sqrt(2), 0.1])


def test_a_head_below_the_tail_is_the_formula_too() -> None:
    assert factors(0.1, 0.4, [100, 36, 4]) == pytest.approx([0.1, 0.25, 0.4])


def test_classes_of_one_size_are_all_large() -> None:
    assert factors(0.4, 0.1, [7, 7, 7]) == pytest.approx([0.4] * 3)


def test_an_empty_class_is_the_smallest() -> None:
    assert factors(0.4, 0.1, [100, 0]) == pytest.approx([0.4, 0.1])
    assert LabelAwareSmoothing().incompatibility(torch.tensor([100, 0])) == ""


def test_defaults_and_what_is_refused() -> None:
    method = LabelAwareSmoothing()
    assert method.lane_values() == {
        "lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "smooth_head": 0.4, "smooth_tail": 0.1
    }  # fmt: skip
    assert (method.head.kind, method.sampler.kind) == ("linear", "class_balanced")
    described = LabelAwareSmoothing.model_fields["smooth_head"].description
    assert described == "smooth factor of the largest class, in [0, 1)"
    for name in ("smooth_head", "smooth_tail"):
        with pytest.raises(SpecError, match=rf"las\.{name}: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"):
            METHODS.parse({"kind": "las", name: 1.0})
