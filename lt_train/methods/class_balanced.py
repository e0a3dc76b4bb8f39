"""Method `class_balanced`: losses weighted by the effective number of images (Cui et al. 2019; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.binary import BinarySigmoid, BinarySoftmax
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.focal import Focal
from lt_train.losses.priors import effective_number_weights, empty_classes
from lt_train.methods.base import TrainedMethod
from lt_train.methods.focal import Gamma

__all__ = ["Beta", "ClassBalancedLoss", "WeightedByEffectiveNumber"]

Beta = Annotated[
    float,
    Field(ge=0, lt=1, description="beta of the effective number (1 - beta^n) / (1 - beta), in [0, 1); 0: no weights"),
]


class WeightedByEffectiveNumber(TrainedMethod):
    """Base of methods whose loss is weighted by the effective number of images of the true class."""

    corrects_prior: ClassVar[bool] = True

    beta: Beta = 0.9999
    mode: Literal["bce_softmax", "sigmoid", "ce", "focal"] = Field(
        default="bce_softmax",
        description="the loss that is weighted: binary cross entropy on softmax probabilities (what LTWB calls) or on "
        "sigmoids (the original), both as mean over classes; cross entropy; or focal loss on softmax probabilities",
    )
    gamma: Gamma = Field(default=2.0, description="focusing exponent, >= 0; of mode focal alone")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        weight = effective_number_weights(lanes["beta"], class_counts)
        match self.mode:
            case "bce_softmax":
                return BinarySoftmax(weight)
            case "sigmoid":
                return BinarySigmoid(weight)
            case "ce":
                return CrossEntropy(weight=weight)
            case "focal":
                return Focal(lanes["gamma"].unsqueeze(-1), weight)

    def validate_combination(self) -> Iterator[str]:
        """See `MethodSpec.validate_combination`."""
        yield from super().validate_combination()
        if self.mode != "focal" and self.gamma != type(self).model_fields["gamma"].default:
            yield f"gamma is the exponent of mode focal and changes nothing in mode {self.mode}; leave it out"

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `MethodSpec.unfit`."""
        return super().incompatibility(class_counts) or empty_classes(class_counts)


class ClassBalancedLoss(WeightedByEffectiveNumber):
    """An image counts more the fewer its class has, by `(1 - beta) / (1 - beta^n)`, scaled to mean 1 over classes.

    Source: Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples.
    """

    kind: Literal["class_balanced"] = "class_balanced"
