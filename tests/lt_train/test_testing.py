"""The conformance checks pass for built-in kinds and name what is wrong with others."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from lt_train.backbones.base import BackboneSpec
from lt_train.core.fields import BATCHED
from lt_train.core.registry import KindSpec
from lt_train.core.seeding import Step, generator
from lt_train.datasets.base import DatasetSpec, FeatureData, Labelled
from lt_train.datasets.digits import DigitsLT
from lt_train.losses import CrossEntropy, Loss, label_index
from lt_train.methods.base import METHODS, Augmentation, CrossEntropyMethod, MethodSpec, TrainedMethod
from lt_train.methods.constraints import ConstraintSpec
from lt_train.methods.heads.base import Classifier, HeadSpec, StackedHead
from lt_train.methods.post_hoc import PostHocSpec
from lt_train.methods.samplers import SamplerSpec
from lt_train.testing import (
    check_backbone,
    check_constraint,
    check_dataset,
    check_head,
    check_kind,
    check_method,
    check_post_hoc,
    check_sampler,
)

pytestmark = pytest.mark.usefixtures("own_kinds")


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


class AcrossLanes(OwnLoss):
    """Depends on the other images and lanes."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().__call__(logits, labels)
        return loss + loss.detach().mean()


class BatchLoss(OwnLoss):
    """Adds the mean loss of the batch."""

    over_batch: ClassVar[bool] = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().__call__(logits, labels)
        return loss * loss.mean(dim=1, keepdim=True)


class Undeclared(OwnLoss):
    """Depends on the other images, for any number of axes."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().__call__(logits, labels)
        return loss + loss.mean(dim=1 if loss.ndim == 3 else 0, keepdim=True)


class AcrossSeeds(BatchLoss):
    """Uses the wrong axis."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = OwnLoss.__call__(self, logits, labels)
        return loss * loss.mean(dim=0, keepdim=True)


class Ordered(BatchLoss):
    """Depends on the place in the batch."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return OwnLoss.__call__(self, logits, labels).cumsum(dim=1)


class Noisy(OwnLoss):
    """Adds normal noise to the logits."""

    def at(self, step: Step) -> Loss:
        """See `Loss.at`."""
        noise = step.draw("own", lambda stream, images: torch.randn(images, 1, generator=stream))
        return OwnLoss(self.strength * noise.abs().squeeze(-1))


class GlobalNoise(OwnLoss):
    """Draws from the global generator."""

    def at(self, step: Step) -> Loss:
        """Wrong."""
        return OwnLoss(self.strength * torch.rand(()))


@pytest.mark.parametrize("loss", [OwnLoss, BatchLoss, Noisy])
def test_a_method_with_its_own_loss_conforms(loss: type[OwnLoss]) -> None:
    class Right(Own):
        """A method with a loss that conforms."""

        def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
            return loss(lanes["strength"])

    check_method(Right)
    check_method(Right(head="cosine", strength=0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (MeanLoss, r"the loss of Wrong must return one value per image, .* got \(\)"),
        (UnstableLoss, "the loss of Wrong or its gradient is not finite for large logits"),
        (lambda strength: WrongGradient(), "with_gradient of Wrong is not the gradient of its loss"),
        (AcrossLanes, "a lane of Wrong depends on other lanes"),
        (AcrossSeeds, "a lane of Wrong depends on other lanes or seeds"),
        (Undeclared, "the loss of Wrong depends on other images, but does not declare over_batch"),
        (Ordered, "the loss of Wrong depends on the order of the images"),
        (GlobalNoise, "a lane of Wrong depends on other lanes"),
        (lambda strength: OwnLoss(strength.mean()), "a lane of Wrong depends on other lanes"),
        (
            lambda strength: OwnLoss(strength - 1) if strength.min() > 0 else UnstableLoss(strength),
            "Wrong at .*0.0.*not finite",
        ),
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


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda features, labels, step: features[:, :2], r"Wrong.augmentation returns \(5, 2\) for \(5, 6\)"),
        (lambda features, labels, step: features.double(), "Wrong.augmentation must return torch.float32"),
        (lambda features, labels, step: features / 0, "Wrong.augmentation returns features that are not finite"),
        (lambda features, labels, step: features.mul_(2), "Wrong.augmentation must not change its arguments"),
        (lambda features, labels, step: features + torch.rand(()), "the fused engine differs from the reference"),
        (lambda features, labels, step: features + step.draw("own", noise_of), None),
    ],
)
def test_an_augmentation_is_checked(augment: Augmentation, message: str | None) -> None:
    class Wrong(Own):
        """A method that changes features."""

        def augmentation(self, class_counts: Tensor) -> Augmentation:
            return augment

    with pytest.raises(AssertionError, match=message) if message else contextlib.nullcontext():
        check_method(Wrong)


def noise_of(stream: torch.Generator, images: int) -> Tensor:
    return torch.randn(images, 1, generator=stream)


class Distance(HeadSpec):
    """Distances to one center per class."""

    kind: Literal["distance"] = "distance"
    scale: Annotated[float, BATCHED, Field(gt=0, description="factor of the distances")] = 1.0

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """See `HeadSpec.module`."""
        return DistanceModule(start[0], self.scale)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.num_parameters`."""
        return num_classes * feature_dim

    def state_shape(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """See `HeadSpec.state_shape`."""
        classes, dim = state["centers"].shape
        return classes, dim


class DistanceModule(nn.Module):
    """See `Distance`."""

    scale: Tensor

    def __init__(self, centers: Tensor, scale: float) -> None:
        super().__init__()
        self.centers = nn.Parameter(centers.clone())
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., K]` of features `[..., D]`."""
        distance = (features.unsqueeze(-2) - self.centers).square().sum(-1)
        return -self.scale * distance


class Affine(Distance):
    """Declares logits that are affine."""

    kind: Literal["affine"] = "affine"  # type: ignore[assignment]

    affine: ClassVar[bool] = True


class Few(Distance):
    """Miscounts its parameters."""

    kind: Literal["few"] = "few"  # type: ignore[assignment]

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """Wrong."""
        return num_classes


class Shapeless(Distance):
    """Does not say where the shape is."""

    kind: Literal["shapeless"] = "shapeless"  # type: ignore[assignment]

    def state_shape(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """Wrong."""
        return HeadSpec.state_shape(self, state)


class Plain(Distance):
    """A number that differs by lane in a Python attribute."""

    kind: Literal["plain"] = "plain"  # type: ignore[assignment]

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """Wrong."""
        module = DistanceModule(start[0], 1.0)
        del module.scale
        object.__setattr__(module, "scale", self.scale)
        return module


class Random(Distance):
    """Starts from numbers of the global generator."""

    kind: Literal["random"] = "random"  # type: ignore[assignment]

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """Wrong."""
        return DistanceModule(torch.randn_like(start[0]), self.scale)


def test_a_method_with_a_head_from_outside_conforms() -> None:
    check_method(Own(head=Distance(scale=0.5)))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Affine, "the fused engine differs from the reference: LoMa .*is its head affine"),
        (Few, "Few.num_parameters must count the parameters of its module, 24, got 4"),
        (Shapeless, "Shapeless.state_shape does not find .K, D. in the state of its module, which has no 'weight'"),
        (Plain, "the fused engine differs from the reference: centers"),
        (Random, "the fused engine differs from the reference: centers"),
    ],
)
def test_a_wrong_head_of_a_method_is_named(head: type[HeadSpec], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(Own(head=head()))


def test_a_loss_that_reads_a_field_instead_of_lanes_is_named() -> None:
    class Fixed(Own):
        """All runs of a loop would have the value of the first one."""

        def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
            return OwnLoss(torch.tensor(self.strength))

    with pytest.raises(AssertionError, match="its loss reads a field instead of `lanes`"):
        check_method(Fixed)


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
    with pytest.raises(AssertionError, match="Kind must be a subclass of MethodSpec"):
        check_method(Kind)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="Kind must be a subclass of DatasetSpec"):
        check_dataset(Kind)  # type: ignore[arg-type]
    assert not issubclass(Kind, MethodSpec)


class Offset(HeadSpec):
    """The frozen classifier with a trained offset per class; `change` breaks one thing."""

    needs_classifier: ClassVar[bool] = True
    affine: ClassVar[bool] = True

    kind: Literal["offset"] = "offset"
    change: str = Field(default="", description="what is wrong")

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """See `HeadSpec.module`."""
        module = nn.Module()
        copied = [tensor if self.change == "shared" else tensor.clone() for tensor in start]
        module.register_buffer("weight", copied[0])
        module.register_buffer("bias", copied[1])
        first = torch.randn(copied[1].shape) if self.change == "random" else torch.zeros_like(copied[1])
        module.register_parameter("offset", nn.Parameter(first))
        module.forward = lambda x: nn.functional.linear(x, module.weight, module.bias) + module.offset  # type: ignore
        return module

    def stack(self, modules_ST: Sequence[Sequence[Any]], lanes: Mapping[str, Tensor], device: str) -> StackedHead:
        """See `HeadSpec.stack`."""
        offset = torch.stack([torch.stack([one.offset.detach() for one in row])[None] for row in modules_ST])
        one = modules_ST[0][0]
        return StackedOffset(offset.to(device), {"weight": one.weight, "bias": one.bias}, self.change)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.num_parameters`."""
        return num_classes + (self.change == "number")

    def inputs(self, features: Tensor, start: Any) -> Tensor:
        """See `HeadSpec.inputs`."""
        assert start is not None
        logits = nn.functional.linear(features, *start)
        return logits.relu() if self.change == "logits" else logits


class StackedOffset(StackedHead):
    """`offset [S, 1, T, K]`; inputs: logits of the classifier."""

    def __init__(self, offset: Tensor, frozen: dict[str, Tensor], change: str) -> None:
        self.parameters, self.frozen, self.change = {"offset": offset}, frozen, change

    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """See `StackedHead.logits`."""
        return inputs_SBI.unsqueeze(2) + self.parameters["offset"]

    def accumulate(
        self, into: Any, inputs_SBI: Tensor, logits_SBTK: Tensor, grad_SBTK: Tensor, keep: float, decay: Any
    ) -> None:
        """See `StackedHead.accumulate`."""
        into["offset"].mul_(keep).add_(grad_SBTK.sum(dim=1, keepdim=True))
        if decay is not None and self.change != "decay":
            into["offset"].add_(decay * self.parameters["offset"])

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """See `StackedHead.state`."""
        offset = self.parameters["offset"][seed, 0, lane]
        return {"offset": offset if self.change == "view" else offset.clone(), **self.frozen}


def test_a_head_conforms() -> None:
    check_head(Offset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shared", "Offset.module must copy the classifier"),
        ("random", "Offset.module must not use the global random generator"),
        ("number", "Offset.num_parameters must count the parameters of its module, 4, got 5"),
        ("logits", "Offset: stacked logits are not those of the module"),
        ("decay", "Offset.accumulate differs from keep .* for offset"),
        ("view", "Offset.state must return copies, not views of offset"),
    ],
)
def test_a_wrong_head_is_named(change: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_head(Offset(change=change))


def test_a_class_attribute_of_a_head_that_is_not_true_is_named() -> None:
    check_head(Distance)
    with pytest.raises(AssertionError, match=r"Affine\.affine must be False"):
        check_head(Affine)


class Order(SamplerSpec):
    """The images in random order; `change` breaks one thing."""

    kind: Literal["order"] = "order"
    change: str = Field(default="", description="what is wrong")

    def order(self, labels: Tensor, seed: int, epoch: int) -> Tensor:
        """See `SamplerSpec.order`."""
        match self.change:
            case "global":
                return torch.randperm(len(labels))
            case "same":
                return torch.arange(len(labels))
            case "type":
                return torch.arange(len(labels)).int()
            case "short":
                return torch.arange(max(labels.unique().numel(), 1))
            case "far":
                return torch.arange(len(labels)) + 1
        return torch.randperm(len(labels), generator=generator("order", seed, epoch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("global", "Order.order changes when it is called again"),
        ("same", "Order.order must differ between the epochs"),
        ("type", "Order.order must be int64, got torch.int32"),
        ("short", r"Order.order must have one index per image, \[86\], got \(4,\)"),
        ("far", r"Order.order must be in 0 \.\. 85, got 1 \.\. 86"),
    ],
)
def test_a_wrong_sampler_is_named(change: str, message: str) -> None:
    check_sampler(Order)
    with pytest.raises(AssertionError, match=message):
        check_sampler(Order(change=change))


class Halve(ConstraintSpec):
    """Halves the rows every time, by the longest row of all lanes, or divides by their length."""

    kind: Literal["halve"] = "halve"
    change: str = Field(default="", description="what is wrong")

    def project_(self, rows: Tensor, dim: int, start_norms: Tensor, lanes: Mapping[str, Tensor]) -> None:
        """See `ConstraintSpec.project_`."""
        norms = rows.square().sum(dim=dim, keepdim=True).sqrt()
        match self.change:
            case "again":
                rows.mul_(0.5)
            case "lanes":
                rows.div_(rows.abs().max())
            case "zero":
                rows.div_(norms)
            case _:
                rows.div_(norms.clamp(min=1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("again", "Halve.project_ changes rows that are projected already"),
        ("lanes", "Halve: a lane of stacked rows is projected differently"),
        ("zero", "Halve.project_ gives values that are not finite"),
    ],
)
def test_a_wrong_constraint_is_named(change: str, message: str) -> None:
    check_constraint(Halve)
    with pytest.raises(AssertionError, match=message):
        check_constraint(Halve(change=change))


class Shift(PostHocSpec):
    """Subtracts a value from the logits of large classes; `change` breaks one thing."""

    kind: Literal["shift"] = "shift"
    by: Annotated[float, BATCHED, Field(ge=0, description="what is subtracted")] = 1.0
    change: str = Field(default="", description="what is wrong")

    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Any, bias: Any
    ) -> tuple[Tensor, Tensor]:
        """See `PostHocSpec.affine`."""
        by = lanes["by"].mean() if self.change == "lanes" else lanes["by"]
        offset = -by * (class_counts - self.change.count("finite")).log()
        return torch.ones(()), offset.unsqueeze(-1) if self.change == "shape" else offset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lanes", "Shift.affine: a lane depends on other lanes"),
        ("finite", "Shift.affine: the offset is not finite"),
        ("shape", "Shift.affine: the offset must be broadcastable"),
    ],
)
def test_a_wrong_adjustment_is_named(change: str, message: str) -> None:
    check_post_hoc(Shift)
    with pytest.raises(AssertionError, match=message):
        check_post_hoc(Shift(change=change))


class Pooled(BackboneSpec):
    """The mean over pixels, projected; `change` breaks one thing."""

    kind: Literal["pooled"] = "pooled"
    change: str = Field(default="", description="what is wrong")

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """See `BackboneSpec.build`."""
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, 6)]
        match self.change:
            case "random":
                layers.append(Noise())
            case "batch":
                layers.append(Centred())
            case "unused":
                layers[0].register_parameter("rest", nn.Parameter(torch.zeros(1)))
        return nn.Sequential(*layers), 6 + (self.change == "dim")


class Centred(nn.Module):
    """Depends on the batch also in evaluation mode."""

    def forward(self, features: Tensor) -> Tensor:
        return features - features.mean(dim=0)


class Noise(nn.Module):
    """Random also in evaluation mode."""

    def forward(self, features: Tensor) -> Tensor:
        return features + torch.randn_like(features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dim", r"Pooled.build states 7 features, .* got \(4, 6\)"),
        ("random", "Pooled: evaluating an image again gives other features"),
        ("batch", "Pooled: in evaluation mode the features of an image must not depend on"),
        ("unused", "Pooled: the parameter 0.rest has no finite gradient"),
    ],
)
def test_a_wrong_backbone_is_named(change: str, message: str) -> None:
    check_backbone(Pooled)
    with pytest.raises(AssertionError, match=message):
        check_backbone(Pooled(change=change))
