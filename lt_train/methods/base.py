"""What a method is: one way to re-train the classifier, a frozen spec composed of parts.

A method is a head, a loss, a sampler, a constraint on the weights and a post-hoc adjustment. A method kind is one file
in this folder with one `MethodSpec` subclass: it names its loss and the parts that make it what it is; any other part
may be changed by its user, and combinations that make no sense are refused here with the reason. Every `float` field,
of the method or of a part, may differ from lane to lane of a fused pack (and may be searched at no cost); every other
field is static, and only runs that agree on it share a pack. Knows the parts' rooms and torch; knows nothing of loops
or banks.

Shapes: S seeds, B batch, T lanes (trials), K classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lt_train.core.lanes import lane_values, static_fields
from lt_train.core.registry import KindSpec, Registry, Spec
from lt_train.core.shorthand import Shorthand
from lt_train.losses.base import Loss
from lt_train.methods.constraints.base import CONSTRAINTS, ConstraintSpec
from lt_train.methods.heads.base import HEADS, HeadSpec
from lt_train.methods.heads.linear import Linear
from lt_train.methods.post_hoc.base import POST_HOC, Adjusted, PostHocSpec
from lt_train.methods.samplers.base import SAMPLERS, SamplerSpec
from lt_train.methods.samplers.instance import Instance

__all__ = [
    "METHODS",
    "LearningRate",
    "MethodSpec",
    "Momentum",
    "SmoothFactor",
    "TrainedMethod",
    "TrainingSpec",
    "WeightDecay",
]

LearningRate = Annotated[float, Field(gt=0, description="learning rate of SGD at the first epoch, > 0")]
WeightDecay = Annotated[float, Field(ge=0, description="L2 penalty on what is trained, >= 0 (torch.optim.SGD)")]
Momentum = Annotated[float, Field(ge=0, lt=1, description="momentum of SGD, in [0, 1)")]
SmoothFactor = Annotated[float, Field(ge=0, lt=1, description="smooth factor d of Eq. 12, in [0, 1)")]

if TYPE_CHECKING:
    Head = HeadSpec
    Sampler = SamplerSpec
    Constraint = ConstraintSpec | None
    PostHoc = PostHocSpec | None
else:
    Head = Annotated[HEADS.union(), Shorthand(tuple(HEADS.kinds()))]
    Sampler = Annotated[SAMPLERS.union(), Shorthand(tuple(SAMPLERS.kinds()))]
    Constraint = Annotated[CONSTRAINTS.union() | None, Shorthand(tuple(CONSTRAINTS.kinds()))]
    PostHoc = Annotated[POST_HOC.union() | None, Shorthand(tuple(POST_HOC.kinds()))]


class TrainingSpec(Spec):
    """How long and in what batches to re-train; the defaults are the paper's protocol."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 20
    batch_size: Annotated[int, Field(ge=1, description="images a step; the last batch may be short")] = 64
    matmul: Annotated[
        Literal["float32", "tf32"],
        Field(description="precision of matrix products; tf32 is faster on CUDA devices that have it, and less exact"),
    ] = "float32"


class MethodSpec(KindSpec):
    """Base of every method kind.

    `trains` says whether the head is changed at all; a method that trains nothing is evaluated once.
    """

    trains: ClassVar[bool]

    head: Head = Field(default=Linear(), description="the classifier")
    post_hoc: PostHoc = Field(default=None, description="adjustment of the trained head's logits at evaluation")

    def lane_values(self) -> dict[str, float]:
        """The hyperparameters that may differ between the lanes of one pack, by dotted path: the float fields."""
        return lane_values(self)

    def static_fields(self) -> dict[str, Any]:
        """The other fields, nested: runs share a pack only if these are equal."""
        return static_fields(self)

    def classifier(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The trained classifier, `[..., D] -> [..., K]`, from what was kept of a run (`SelectedHead.state`).

        Raises:
            RuntimeError: the tensors are not those of this method's head.
        """
        inner = (
            state
            if self.post_hoc is None
            else {name.removeprefix("head."): tensor for name, tensor in state.items() if name.startswith("head.")}
        )
        weight = inner["weight"]
        head = self.head.module((torch.zeros_like(weight), weight.new_zeros(len(weight))))
        head.load_state_dict(dict(inner))
        return head if self.post_hoc is None else Adjusted(head, state["scale"], state["offset"])

    def incompatibility(self, class_counts: Tensor) -> str:
        """Why this method cannot be trained on data with these class counts `[K]`; empty where it can."""
        return "" if self.post_hoc is None else self.post_hoc.incompatibility(class_counts)

    @model_validator(mode="after")
    def _refuse_senseless(self) -> MethodSpec:
        for reason in self.validate_combination():
            raise ValueError(reason)
        return self

    def validate_combination(self) -> Iterator[str]:
        """Reasons why the values and parts of this method do not go together."""
        for path, value in self.lane_values().items():
            stored = torch.tensor(value, dtype=torch.float32).item()
            if not math.isfinite(stored) or (value < 1.0 <= stored) or (value > 0.0 >= stored):
                yield f"{path} must be a number that float32 can tell from {stored:g}, got {value!r}"
        if self.post_hoc is not None and self.post_hoc.needs_rows and not self.head.has_rows:
            yield (
                f"post_hoc {self.post_hoc.kind} divides by the length of trained weight rows, and head "
                f"{self.head.kind} has none; use one of {_heads_with_rows()}"
            )


class TrainedMethod(MethodSpec):
    """Base of methods that re-train the head with SGD, momentum and a cosine schedule stepped after each epoch.

    `corrects_prior` says whether the loss takes the class frequencies out already, by a shift of the logits or by
    weights.
    """

    trains: ClassVar[bool] = True
    corrects_prior: ClassVar[bool] = False

    lr: LearningRate = 5e-4
    weight_decay: WeightDecay = 0.0
    momentum: Momentum = 0.9
    init: Annotated[
        Literal["checkpoint", "random"],
        Field(description="start from the stage-1 head (warm) or from torch.nn.Linear's own start (fresh)"),
    ] = "checkpoint"
    sampler: Sampler = Field(default=Instance(), description="order in which training images are visited")
    constraint: Constraint = Field(default=None, description="projection of the weight rows during training")

    @abstractmethod
    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """The loss that is trained, with its tables; a step takes its mean over the batch, weighted or not.

        Args:
            lanes: every lane value by dotted path, `[]` for one run or `[S, 1, T]` for a stack.
            class_counts: int64 `[K]`, training images a class, on the same device.
        """

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
            yield f"{' and '.join(correcting)} would each correct for class frequencies; keep one of them"


def _heads_with_rows() -> str:
    return ", ".join(name for name, spec in HEADS.kinds().items() if spec.has_rows)


METHODS = Registry("lt_train.methods", MethodSpec)
"""The methods."""
