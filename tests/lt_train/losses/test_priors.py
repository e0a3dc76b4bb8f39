"""Class priors: from counts or as given, and invalid ones."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lt_train.losses import Prior, empty_classes, log_prior, prior_incompatibility

ADAPTER: TypeAdapter[tuple[float, ...] | None] = TypeAdapter(Prior)


def test_from_counts() -> None:
    found = log_prior(None, torch.tensor([8, 1, 1]))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([math.log(0.8), math.log(0.1), math.log(0.1)])


def test_counts_beyond_float32_are_told_apart() -> None:
    # 2^24 + 1 is not a float32: counts are divided in double precision.
    found = log_prior(None, torch.tensor([2**24 + 1, 2**24 + 1, 2]))
    assert found.exp().double().sum().item() == pytest.approx(1.0, abs=1e-7)


def test_as_given_and_scaled_to_sum_1() -> None:
    assert log_prior((0.5, 0.2504, 0.25), torch.tensor([1, 2, 3])).exp().sum().item() == pytest.approx(1.0)
    assert log_prior((0.75, 0.25), torch.tensor([1, 1])).tolist() == pytest.approx([math.log(0.75), math.log(0.25)])


@pytest.mark.parametrize("prior", [None, (1.0,), (0.5, 0.5), (0.3333, 0.3333, 0.3333), (0.9995,)])
def test_sound_priors(prior: tuple[float, ...] | None) -> None:
    assert ADAPTER.validate_python(prior) == prior


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ((), "a share > 0"),
        ((0.5, 0.5, 0.0), "every class must have a share > 0, got 0"),
        ((1.2, -0.2), r"every class must have a share > 0, got -0\.2"),
        ((0.5, 0.4), r"shares must sum to 1 \(within 0\.001\), got a sum of 0\.9"),
        ((0.5, 0.502), r"got a sum of 1\.002"),
    ],
)
def test_unsound_priors_are_rejected(prior: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(prior)


def test_classes_without_images_are_named() -> None:
    assert empty_classes(torch.tensor([3, 1, 1])) == ""
    assert empty_classes(torch.tensor([3, 0, 1, 0])) == (
        "every class must have training images, but 2 of 4 have none: 1, 3"
    )
    many = empty_classes(torch.tensor([1] + [0] * 15))
    assert many.endswith("15 of 16 have none: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...")


def test_a_prior_must_fit_the_classes() -> None:
    counts = torch.tensor([3, 0, 1])
    assert "1 of 3 have none: 1" in prior_incompatibility(None, counts)
    assert prior_incompatibility((0.2, 0.3, 0.5), counts) == ""
    assert prior_incompatibility((0.5, 0.5), counts) == "prior must have one share for each of the 3 classes, got 2"
