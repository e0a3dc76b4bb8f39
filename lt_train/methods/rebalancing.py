"""Methods that change how much an image counts: `Resample` and `CRT` by balanced batches, the others by weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.core.fields import BATCHED
from lt_train.losses import BinarySigmoid, BinarySoftmax, CrossEntropy, FocalLoss, Loss, effective_number_weights
from lt_train.methods import constraints, samplers
from lt_train.methods.base import METHODS, CrossEntropyMethod, LearningRate, TrainedMethod, WeightDecay

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CRT", "LTWB", "ClassBalanced", "Focal", "Resample"]


@METHODS.register
class Resample(CrossEntropyMethod):
    """Trains the stage-1 head further with all classes equally frequent in a batch. Paper, Table 1."""

    kind: Literal["resample"] = "resample"
    sampler: samplers.ClassBalanced = Field(
        default=samplers.ClassBalanced(), description="class-balanced batches, the only difference from `ce`"
    )


@METHODS.register
class CRT(CrossEntropyMethod):
    """Classifier re-training: trains a randomly initialised head with all classes equally frequent in a batch.

    Source: Kang et al. 2020, Decoupling Representation and Classifier (there with learning rate 0.2, weight decay 5e-4,
    batches of 512 and 10 epochs); paper, Table 2.
    """

    kind: Literal["crt"] = "crt"
    init: Literal["random"] = Field(
        default="random", description="random initialisation, the only difference from `resample`"
    )
    sampler: samplers.ClassBalanced = Field(
        default=samplers.ClassBalanced(), description="class-balanced batches: all classes equally frequent"
    )


Gamma = Annotated[
    float, BATCHED, Field(ge=0, description="focusing exponent of the focal loss, >= 0; 0 is cross entropy")
]
Beta = Annotated[
    float,
    BATCHED,
    Field(
        ge=0,
        lt=1,
        description="beta of the effective number (1 - beta^n) / (1 - beta), in [0, 1); 0 gives equal weights",
    ),
]


@METHODS.register
class Focal(TrainedMethod):
    """Focal loss on softmax probabilities: well-classified images count less, by the factor `(1 - p_y)^gamma`.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection (gamma 2; the code of LDAM uses 1); paper, Table 1.
    """

    kind: Literal["focal"] = "focal"
    gamma: Gamma = 2.0

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return FocalLoss(lanes["gamma"].unsqueeze(-1))


class EffectiveNumberMethod(TrainedMethod):
    """Base class of methods whose loss is weighted by the effective number of images of the true class."""

    corrects_prior: ClassVar[bool] = True
    needs_all_classes: ClassVar[bool] = True

    beta: Beta = 0.9999
    mode: Literal["bce_softmax", "sigmoid", "ce", "focal"] = Field(
        default="bce_softmax",
        description="the weighted loss: binary cross entropy on softmax probabilities (bce_softmax, as in the code of "
        "LTWB) or on sigmoids (sigmoid, the original), both as mean over classes; cross entropy (ce); or focal loss on "
        "softmax probabilities (focal)",
    )
    gamma: Gamma = Field(default=2.0, description="focusing exponent, >= 0; used in mode focal only")

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
                return FocalLoss(lanes["gamma"].unsqueeze(-1), weight)

    def validate_combination(self) -> Iterator[str]:
        """See `MethodSpec.validate_combination`."""
        yield from super().validate_combination()
        if self.mode != "focal" and self.gamma != type(self).model_fields["gamma"].default:
            yield f"gamma is the exponent of mode focal and changes nothing in mode {self.mode}; leave it out"


@METHODS.register
class ClassBalanced(EffectiveNumberMethod):
    """Class-balanced loss: weights `(1 - beta) / (1 - beta^n)` by class, scaled to mean 1 over classes.

    Source: Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples; paper, Table 1.
    """

    kind: Literal["class_balanced"] = "class_balanced"


@METHODS.register
class LTWB(EffectiveNumberMethod):
    """Weight balancing, stage 2: `maxnorm` and `class_balanced` together, with a strong weight decay.

    Source: Alshammari et al. 2022, Long-Tailed Recognition via Weight Balancing; paper, Table 2. The original trains 10
    epochs. Epochs are not part of a method; set `training: {epochs: 10}`.
    """

    kind: Literal["ltwb"] = "ltwb"
    lr: LearningRate = 0.01
    weight_decay: WeightDecay = 0.1
    constraint: constraints.MaxNorm = Field(
        default=constraints.MaxNorm(), description="radius of the weight rows, and when they are projected"
    )
