"""Methods that keep the stage-1 head.

`Vanilla` uses it as it is, `TauNorm` and `LogitAdjust` adjust it without training, `LWS` and `DisAlign` train factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.core.fields import BATCHED
from lt_train.losses import CrossEntropy, Loss
from lt_train.methods import heads
from lt_train.methods import post_hoc as adjustments
from lt_train.methods.base import (
    METHODS,
    CrossEntropyMethod,
    LearningRate,
    MethodSpec,
    Sampler,
    TrainedMethod,
    WeightDecay,
)
from lt_train.methods.heads import Linear
from lt_train.methods.samplers import ClassBalanced

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LWS", "DisAlign", "LogitAdjust", "TauNorm", "Vanilla"]


@METHODS.register
class Vanilla(MethodSpec):
    """The stage-1 head of the checkpoint, unchanged; needs a bank with a stage-1 head. Paper, Table 1, first row."""

    trains: ClassVar[bool] = False

    kind: Literal["vanilla"] = "vanilla"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: None = Field(default=None, description="none; see the methods `tau_norm` and `logit_adjust`")


@METHODS.register
class TauNorm(MethodSpec):
    """Divides each weight row of the stage-1 head by its norm to the power `post_hoc.tau`.

    Source: Kang et al. 2020, Decoupling Representation and Classifier, which searches tau in steps of 0.1 from 0 to 2;
    the whole grid costs one pass over the features. Paper, Table 1.
    """

    trains: ClassVar[bool] = False

    kind: Literal["tau_norm"] = "tau_norm"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: adjustments.TauNorm = Field(
        default=adjustments.TauNorm(), description="exponent of the norm, and treatment of the bias"
    )


@METHODS.register
class LogitAdjust(MethodSpec):
    """Subtracts `post_hoc.tau` times the log prior from the logits of the stage-1 head.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment; paper, Table 1. `logit_adjust_loss` does so in
    training.
    """

    trains: ClassVar[bool] = False

    kind: Literal["logit_adjust"] = "logit_adjust"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: adjustments.LogitAdjust = Field(
        default=adjustments.LogitAdjust(), description="factor of the log prior, and the prior"
    )


@METHODS.register
class LWS(CrossEntropyMethod):
    """Learnable weight scaling: trains one factor per class on the stage-1 logits, with class-balanced batches.

    Source: Kang et al. 2020, Decoupling Representation and Classifier; learning rate 0.2 and weight decay 5e-4 are from
    its code. Other samplers are allowed. Paper, Table 1.
    """

    kind: Literal["lws"] = "lws"
    lr: LearningRate = 0.2
    weight_decay: WeightDecay = 5e-4
    head: heads.LWS = Field(default=heads.LWS(), description="one factor per class on the stage-1 logits")
    sampler: Sampler = Field(default=ClassBalanced(), description="order in which training images are visited")


@METHODS.register
class DisAlign(TrainedMethod):
    """Distribution alignment: trains a factor and an offset per class and a confidence gate on the frozen stage-1 head.

    Cross entropy is weighted by `K n_y^-rho / sum_k n_k^-rho`. Source: Zhang et al. 2021, Distribution Alignment: A
    Unified Framework for Long-tail Visual Recognition (rho 1.5 on ImageNet-LT; the released configuration has rho 1.2,
    learning rate 0.1, weight decay 5e-4, batches of 256 and 10 epochs); paper, Table 2.
    """

    corrects_prior: ClassVar[bool] = True
    needs_all_classes: ClassVar[bool] = True

    kind: Literal["disalign"] = "disalign"
    head: heads.DisAlign = Field(
        default=heads.DisAlign(), description="factors, offsets and gate on the logits of the stage-1 classifier"
    )
    rho: Annotated[
        float,
        BATCHED,
        Field(ge=0, description="exponent of the class sizes in the weights, >= 0; 0 gives equal weights"),
    ] = 1.5

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        shares = (-lanes["rho"].unsqueeze(-1) * class_counts.log()).softmax(dim=-1)
        return CrossEntropy(weight=len(class_counts) * shares)
