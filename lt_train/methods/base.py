"""Base classes of methods: `MethodSpec` (ways to obtain a classifier) and `TrainedMethod` (ways to re-train one).

A method is composed of a head, a loss, a data sampler, a constraint on the weights and a post-hoc adjustment. A method
class names its loss and fixes the parts that define it. All other parts are free, and combinations that make no sense
are rejected with the reason. A field declared `BATCHED` may differ between the lanes of a fused pack, so it is searched
at almost no cost. Runs share a pack only if they agree on all other fields.

Shapes: S seeds, T lanes (trials), K classes, D features.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from lt_train.core.fields import BATCHED, lane_values, static_fields
from lt_train.core.imports import nn, torch
from lt_train.core.registry import KindSpec, Registry, Spec
from lt_train.losses import CrossEntropy, Loss, empty_classes
from lt_train.methods.constraints import CONSTRAINTS, ConstraintSpec
from lt_train.methods.heads import HEADS, HeadSpec, Linear
from lt_train.methods.post_hoc import POST_HOC, FittedPostHoc, PostHocSpec
from lt_train.methods.samplers import SAMPLERS, Instance, SamplerSpec

if TYPE_CHECKING:
    from torch import Tensor

    from lt_train.core.seeding import Step
    from lt_train.features.bank import EvalSet
    from lt_train.methods.heads.base import Classifier

__all__ = [
    "METHODS",
    "Augmentation",
    "CrossEntropyMethod",
    "LearningRate",
    "MethodSpec",
    "Momentum",
    "SmoothFactor",
    "TrainedMethod",
    "TrainingSpec",
    "WeightDecay",
]

LearningRate = Annotated[float, BATCHED, Field(gt=0, description="learning rate of SGD in the first epoch, > 0")]
WeightDecay = Annotated[
    float, BATCHED, Field(ge=0, description="L2 penalty on the trained parameters, >= 0 (torch.optim.SGD)")
]
Momentum = Annotated[float, BATCHED, Field(ge=0, lt=1, description="momentum of SGD, in [0, 1)")]
SmoothFactor = Annotated[float, BATCHED, Field(ge=0, lt=1, description="smooth factor d (paper, Eq. 12), in [0, 1)")]

Head = Annotated[HeadSpec, HEADS]
Sampler = Annotated[SamplerSpec, SAMPLERS]
Constraint = Annotated[ConstraintSpec, CONSTRAINTS] | None
PostHoc = Annotated[PostHocSpec, POST_HOC] | None
Augmentation: TypeAlias = "Callable[[Tensor, Tensor, Step], Tensor]"
"""Features `[B, D]`, labels `[B]` and step of a batch to its new features."""


class TrainingSpec(Spec):
    """Length and batches of re-training. The defaults are the protocol of the paper."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 20
    batch_size: Annotated[int, Field(ge=1, description="images per step; the last batch may be smaller")] = 64
    matmul: Annotated[
        Literal["float32", "tf32"],
        Field(description="precision of matrix products; tf32 is faster on CUDA devices that have it, and less exact"),
    ] = "float32"


class MethodSpec(KindSpec):
    """Base class of all methods.

    Class attributes:
        trains: whether the head is trained. A method that trains nothing is evaluated once.
        needs_all_classes: whether it divides by class sizes, so that every class must have training images.
        prepares_on_val: whether `prepared` reads the validation set. The accuracy on that set is then optimistic.
    """

    trains: ClassVar[bool]
    needs_all_classes: ClassVar[bool] = False
    prepares_on_val: ClassVar[bool] = False

    head: Head = Field(default=Linear(), description="the classifier")
    post_hoc: PostHoc = Field(default=None, description="adjustment of the logits of the trained head at evaluation")

    def lane_values(self) -> dict[str, float]:
        """The batched fields, which may differ between the lanes of one pack, by dotted path."""
        return lane_values(self)

    def static_fields(self) -> dict[str, Any]:
        """All other fields, nested. Runs share a pack only if these are equal."""
        return static_fields(self)

    @property
    def uses_val(self) -> bool:
        """Whether the method or its post-hoc adjustment sets values from the validation set."""
        return self.prepares_on_val or isinstance(self.post_hoc, FittedPostHoc)

    def prepared(self, val: EvalSet, start: Classifier | None) -> Self:
        """This method with fields set from the validation set, before training; called if it `prepares_on_val`.

        It must not change `head`, `post_hoc`, fields that declare BATCHED, or fields that a sweep searches: results are
        recorded under the values that the method had before.

        Args:
            val: the validation set, on the CPU.
            start: the stage-1 classifier, None if the bank has none.
        """
        return self

    def classifier(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The trained classifier, `[..., D] -> [..., K]`, from the state of a run (`SelectedHead.state`).

        Raises:
            KeyError, RuntimeError: the tensors do not belong to the head of this method.
        """
        from lt_train.methods.heads._modules import Adjusted

        classes, dim = self.state_shape(state)
        head = self.head.module((torch.zeros(classes, dim), torch.zeros(classes)))
        head.load_state_dict(self._head_state(state))
        return head if self.post_hoc is None else Adjusted(head, state["scale"], state["offset"])

    def state_shape(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """`(K, D)` of the classifier in the state of a run.

        Raises:
            KeyError: the tensors do not belong to the head of this method.
        """
        return self.head.state_shape(self._head_state(state))

    def _head_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.post_hoc is None:
            return dict(state)
        return {name.removeprefix("head."): tensor for name, tensor in state.items() if name.startswith("head.")}

    def incompatibility(self, class_counts: Tensor) -> str:
        """Why this method cannot be used on data with these class counts `[K]`; empty if it can."""
        reason = "" if self.post_hoc is None else self.post_hoc.incompatibility(class_counts)
        return reason or (empty_classes(class_counts) if self.needs_all_classes else "")

    @model_validator(mode="after")
    def _check_combination(self) -> MethodSpec:
        for reason in self.validate_combination():
            raise ValueError(reason)
        return self

    def validate_combination(self) -> Iterator[str]:
        """Reasons why the values and parts of this method are invalid together."""
        for path, value in self.lane_values().items():
            with np.errstate(over="ignore"):
                stored = float(np.float32(value))
            if not math.isfinite(stored) or (value < 1.0 <= stored) or (value > 0.0 >= stored):
                yield f"{path} must not round to {stored:g} in float32, got {value!r}"
        if self.post_hoc is not None and self.post_hoc.needs_rows and not self.head.has_rows:
            yield (
                f"post_hoc {self.post_hoc.kind} divides by the length of trained weight rows, and head "
                f"{self.head.kind} has none; use one of {_heads_with_rows()}"
            )


class TrainedMethod(MethodSpec):
    """Base class of methods that re-train the head: SGD with momentum and a cosine schedule with one step per epoch.

    Class attributes:
        corrects_prior: whether the loss corrects for the class frequencies, by a shift of the logits or by weights.
    """

    trains: ClassVar[bool] = True
    corrects_prior: ClassVar[bool] = False

    lr: LearningRate = 5e-4
    weight_decay: WeightDecay = 0.0
    momentum: Momentum = 0.9
    init: Annotated[
        Literal["checkpoint", "random"],
        Field(description="start from the stage-1 head (checkpoint), or from the default of torch.nn.Linear (random)"),
    ] = "checkpoint"
    sampler: Sampler = Field(default=Instance(), description="order in which training images are visited")
    constraint: Constraint = Field(default=None, description="projection of the weight rows during training")

    @abstractmethod
    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """The training loss with its tables. A step minimises its mean over the batch.

        Args:
            lanes: all lane values by dotted path, `[]` for one run or `[S, 1, T]` for a stack.
            class_counts: int64 `[K]`, training images per class, on the same device.
        """

    def augmentation(self, class_counts: Tensor) -> Augmentation | None:
        """A change of the training features of every batch; None by default.

        It is called with float32 features `[B, D]` of one seed, their labels `[B]` and the step, and returns new
        features. All lanes of a stack share the features, so it may depend on static fields only, not on lane values.

        Args:
            class_counts: int64 `[K]`, training images per class, on the same device.
        """
        return None

    def validate_combination(self) -> Iterator[str]:
        """See `MethodSpec.validate_combination`."""
        yield from super().validate_combination()
        if self.head.needs_classifier and self.init == "random":
            yield f"head {self.head.kind} re-scales a trained classifier; init must be checkpoint, got random"
        if self.constraint is not None and not self.head.has_rows:
            yield (
                f"constraint {self.constraint.kind} bounds the length of trained weight rows, and head "
                f"{self.head.kind} has none; use one of {_heads_with_rows()}"
            )
        correcting = [f"the loss of {self.kind}"] * self.corrects_prior
        correcting += [f"sampler {self.sampler.kind}"] * self.sampler.corrects_prior
        if self.post_hoc is not None and self.post_hoc.corrects_prior:
            correcting.append(f"post_hoc {self.post_hoc.kind}")
        if len(correcting) > 1:
            yield f"{' and '.join(correcting)} each correct for class frequencies; keep only one of them"


class CrossEntropyMethod(TrainedMethod):
    """Base class of methods that train plain cross entropy and differ in their head, sampler, constraint or start."""

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy()


def _heads_with_rows() -> str:
    return ", ".join(name for name, spec in HEADS.kinds().items() if spec.has_rows)


METHODS = Registry("methods", MethodSpec, "lt_train.methods")
"""The plugin group of methods."""
