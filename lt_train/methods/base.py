"""What a method is: one way to re-train the classifier, as a frozen spec that composes a head and a loss.

A method kind is one file in this folder with one `MethodSpec` subclass. Its fields are its hyperparameters: every
`float` field may differ from lane to lane of a fused pack (and may be searched at no cost); every other field is
static, and only runs that agree on it share a pack. Knows losses and torch; knows nothing of loops or banks.

Shapes: S seeds, B batch, T lanes (trials), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lt_train.registry import KindSpec, Spec, kinds, parse, union

__all__ = [
    "LearningRate",
    "MethodSpec",
    "Momentum",
    "SmoothFactor",
    "TrainedMethod",
    "TrainingSpec",
    "WeightDecay",
    "method_kinds",
    "method_union",
    "parse_method",
]

LearningRate = Annotated[float, Field(gt=0, description="learning rate of SGD at the first epoch, > 0")]
WeightDecay = Annotated[float, Field(ge=0, description="L2 penalty on weight and bias, >= 0 (torch.optim.SGD)")]
Momentum = Annotated[float, Field(ge=0, lt=1, description="momentum of SGD, in [0, 1)")]
SmoothFactor = Annotated[float, Field(ge=0, lt=1, description="smooth factor d of Eq. 12, in [0, 1)")]


class TrainingSpec(Spec):
    """How long and in what batches to re-train; the defaults are the paper's protocol."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 20
    batch_size: Annotated[int, Field(ge=1, description="pictures a step; the last batch may be short")] = 64


class MethodSpec(KindSpec):
    """Base of every method kind.

    `trains` says whether the head is changed at all; a method that trains nothing is evaluated once.
    """

    trains: ClassVar[bool]

    @classmethod
    def lane_fields(cls) -> tuple[str, ...]:
        """Names of the hyperparameters that may differ between the lanes of one pack: the float fields."""
        return tuple(name for name, field in cls.model_fields.items() if field.annotation is float)

    def static_fields(self) -> dict[str, Any]:
        """The other fields, by name: runs share a pack only if these are equal."""
        return self.model_dump(mode="json", exclude=set(self.lane_fields()))


class TrainedMethod(MethodSpec):
    """Base of methods that re-train the head with SGD, momentum and a cosine schedule stepped after each epoch."""

    trains: ClassVar[bool] = True

    lr: LearningRate = 5e-4
    weight_decay: WeightDecay = 0.0
    momentum: Momentum = 0.9
    init: Annotated[
        Literal["warm", "fresh"],
        Field(description="start from the stage-1 head (warm) or from torch.nn.Linear's own start (fresh)"),
    ] = "warm"

    @classmethod
    def loss(cls, logits: Tensor, labels: Tensor, lanes: Mapping[str, Tensor]) -> Tensor:
        """Per-sample loss.

        Args:
            logits: float `[..., K]`, for example `[S, B, T, K]`.
            labels: int64, broadcastable to `[...]`.
            lanes: every lane field by name, broadcastable to `[...]`, for example `[S, 1, T]`.

        Returns:
            float `[...]`.
        """
        raise NotImplementedError


def method_kinds() -> dict[str, type[MethodSpec]]:
    """Every method kind by name."""
    return kinds("lt_train.methods", MethodSpec)


def method_union() -> Any:
    """The discriminated union over every method kind, for specs."""
    return union("lt_train.methods", MethodSpec)


def parse_method(document: dict[str, Any]) -> MethodSpec:
    """A method spec from a plain mapping; SpecError names every problem."""
    return parse("lt_train.methods", MethodSpec, document)
