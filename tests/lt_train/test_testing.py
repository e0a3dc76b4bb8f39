"""The conformance checks pass for built-in kinds and name what is wrong with others."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor

from lt_train.core.fields import BATCHED
from lt_train.core.registry import KindSpec
from lt_train.datasets.base import DatasetSpec, FeatureData, Labelled
from lt_train.datasets.digits import DigitsLT
from lt_train.losses import CrossEntropy, Loss, label_index
from lt_train.methods.base import METHODS, CrossEntropyMethod, MethodSpec, TrainedMethod
from lt_train.testing import check_dataset, check_kind, check_method


@pytest.mark.parametrize("kind", METHODS.kinds())
def test_built_in_methods_conform(kind: str) -> None:
    check_method(METHODS.kinds()[kind])


def test_a_built_in_dataset_conforms() -> None:
    check_dataset(DigitsLT)
    check_dataset(DigitsLT(val_per_class=0, imbalance_ratio=5.0))


class Kind(KindSpec):
    """A kind that conforms."""

    kind: Literal["kind"] = "kind"
    size: int = Field(default=1, description="a number")


class NoDefault(Kind):
    """A field without a default."""

    shape: int = Field(description="a number")


class NotDescribed(Kind):
    """A field without a description."""

    shape: int = 1


class Mutable(Kind):
    """A field that is a list."""

    shape: list[int] = Field(default=[1], description="numbers")


def test_kinds_are_checked() -> None:
    check_kind(Kind)
    check_kind(NoDefault(shape=3))
    for wrong, message in [
        (NoDefault, "NoDefault has fields without valid defaults; pass an instance"),
        (NotDescribed, "NotDescribed.shape needs a description"),
        (Mutable, "Mutable must be hashable"),
        (type("Silent", (Kind,), {"__doc__": None, "__module__": __name__}), "Silent needs a docstring"),
    ]:
        with pytest.raises(AssertionError, match=message):
            check_kind(wrong)


class Own(TrainedMethod):
    """A method with the loss of a test."""

    kind: Literal["own"] = "own"
    strength: Annotated[float, BATCHED, Field(ge=0, description="weight of the own part")] = 1.0

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return OwnLoss(lanes["strength"])


class OwnLoss(Loss):
    """Cross entropy plus strength (1 - p_y)."""

    def __init__(self, strength: Tensor) -> None:
        self.strength = strength

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1).gather(-1, label_index(labels, logits)).squeeze(-1)
        return -log_p + self.strength * (1 - log_p.exp())


class MeanLoss(OwnLoss):
    """One value for all images."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().__call__(logits, labels).mean()


class UnstableLoss(OwnLoss):
    """Overflows."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.exp().sum(-1).pow(40).log() - super().__call__(logits, labels)


class WrongGradient(CrossEntropy):
    """Forgets a factor."""

    def with_gradient(self, logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        loss, gradient = super().with_gradient(logits, labels, scale)
        return loss, 0.5 * gradient


class BatchLoss(OwnLoss):
    """Depends on the other images of the batch."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().__call__(logits, labels)
        return loss + loss.detach().mean()


def test_a_method_with_its_own_loss_conforms() -> None:
    check_method(Own)
    check_method(Own(head="cosine", strength=0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (MeanLoss, r"the loss of Wrong must return one value per image, got \(\)"),
        (UnstableLoss, "the loss of Wrong or its gradient is not finite for large logits"),
        (lambda strength: WrongGradient(), "with_gradient of Wrong is not the gradient of its loss"),
        (BatchLoss, "a lane of Wrong depends on other lanes"),
        (lambda strength: OwnLoss(strength.mean()), "a lane of Wrong depends on other lanes"),
    ],
)
def test_a_wrong_loss_is_named(loss: Any, message: str) -> None:
    class Wrong(Own):
        """A method with a wrong loss."""

        def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
            found: Loss = loss(lanes["strength"])
            return found

    with pytest.raises(AssertionError, match=message):
        check_method(Wrong)


def test_bounds_of_fields_are_kept() -> None:
    class Bounded(Own):
        """A field that must be at least 1."""

        strength: Annotated[float, BATCHED, Field(ge=1, description="at least 1")] = 1.0

        def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
            return OwnLoss((lanes["strength"] - 1).sqrt())

    check_method(Bounded)


def test_a_field_that_is_not_batched_is_named() -> None:
    class Forgotten(Own):
        """Lacks the declaration."""

        strength: float = Field(default=1.0, description="a weight")

    with pytest.raises(AssertionError, match=r"uses lanes\['strength'\], but Forgotten has no such field"):
        check_method(Forgotten)


def test_a_method_that_fails_is_named() -> None:
    class Diverging(CrossEntropyMethod):
        """A learning rate without sense."""

        kind: Literal["diverging"] = "diverging"
        lr: Annotated[float, BATCHED, Field(gt=0, description="learning rate")] = 3e38

    with pytest.raises(AssertionError, match=r"Diverging with .* failed: diverged"):
        check_method(Diverging)


class Features(DatasetSpec):
    """Three classes of features; `change` breaks one thing."""

    kind: Literal["features"] = "features"
    change: str = Field(default="", description="what is wrong")

    def load(self) -> FeatureData:
        """See `DatasetSpec.load`."""
        stream = torch.Generator().manual_seed(0)
        labels = torch.arange(3).repeat(10)
        parts = {
            name: (torch.randn(1, 30, 4, generator=stream), labels.clone(), torch.full((3,), 10))
            for name in ("train", "val", "test")
        }
        inputs, own, counts = parts["train"]
        match self.change:
            case "labels":
                own[0] = 3
            case "type":
                parts["train"] = inputs, own.int(), counts
            case "shape":
                parts["train"] = inputs[0], own, counts
            case "length":
                parts["train"] = inputs[:, 1:], own, counts
            case "empty":
                own[:] = own.clamp(max=1)
            case "counts":
                counts -= 1
            case "overlap":
                parts["test"][0][0, 0] = inputs[0, 5]
            case "random":
                inputs += torch.randn(1)
        train, val, test = (Labelled(*parts[name][:2]) for name in ("train", "val", "test"))
        return FeatureData(train, val, test, 3, parts["train"][2], head=None)


def messages() -> Iterator[tuple[str, str]]:
    yield "labels", r"Features: train: labels must be in 0 \.\. 2, got 0 \.\. 3"
    yield "type", "Features: train: labels must be int64, got torch.int32"
    yield "shape", r"Features: train: inputs must have 3 axes, got shape \(30, 4\)"
    yield "length", "Features: train: 29 inputs and 30 labels"
    yield "empty", r"Features: classes \[2\] have no training image"
    yield "counts", "Features: split_counts must count all training images"
    yield "overlap", "Features: train and test have 1 input in common"
    yield "random", "Features: loading again gives another train set"


def test_a_dataset_of_features_conforms() -> None:
    check_dataset(Features)


@pytest.mark.parametrize(("change", "message"), messages())
def test_a_wrong_dataset_is_named(change: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_dataset(Features(change=change))


def test_a_kind_of_another_group_is_refused() -> None:
    with pytest.raises(AssertionError, match="Kind is not a method"):
        check_method(Kind)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="Kind is not a dataset"):
        check_dataset(Kind)  # type: ignore[arg-type]
    assert not issubclass(Kind, MethodSpec)
