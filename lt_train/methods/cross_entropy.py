"""Cross entropy: plain, with smoothed labels, with shifted logits, or with controlled norms of weight rows.

`CE` is plain. `LOS` (the method of the paper) and `LAS` smooth the labels. In training, `BalancedSoftmax` and
`LogitAdjustLoss` shift the logits, and `LDAM` lowers the true one by a margin. `Cosine` ignores the norms of weight
rows, `MaxNorm` bounds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.core.fields import BATCHED, part_of
from lt_train.losses import CrossEntropy, Loss, Prior, log_prior, prior_incompatibility
from lt_train.methods import constraints, heads
from lt_train.methods.base import METHODS, CrossEntropyMethod, Head, Sampler, SmoothFactor, TrainedMethod
from lt_train.methods.samplers import ClassBalanced

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CE", "LAS", "LDAM", "LOS", "BalancedSoftmax", "Cosine", "LogitAdjustLoss", "MaxNorm"]


@METHODS.register
class CE(CrossEntropyMethod):
    """Plain cross entropy, the loss of stage 1: shows the effect of re-training alone. Paper, Table 4, column "CE"."""

    kind: Literal["ce"] = "ce"


@METHODS.register
class LOS(TrainedMethod):
    """Label Over-Smooth: cross entropy with almost uniform labels. Needs no class counts.

    The paper uses d = 0.98 on CIFAR100-LT and d = 0.99 on ImageNet-LT and iNaturalist 2018. With few classes the best d
    is lower, so search it. Source: paper, section 3.2, Eq. 12.
    """

    kind: Literal["los"] = "los"
    smooth_factor: SmoothFactor = 0.98

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy(smooth_factor=lanes["smooth_factor"].unsqueeze(-1))


@METHODS.register
class LAS(TrainedMethod):
    """Label-aware smoothing: the smooth factor grows with class size, from `smooth_tail` to `smooth_head`.

    `d_k = tail + (head - tail) sin(pi/2 (n_k - n_min) / (n_max - n_min))`. If all classes have the same size, d is
    `smooth_head`. `smooth_head` may be below `smooth_tail`, because both are searched independently.
    Source: Zhong et al. 2021, Improving Calibration for Long-Tailed Recognition (MiSLAS), with 0.4 and 0.1 for
    CIFAR100-LT with IR 100; the original adds learnable weight scaling, and mixup in stage 1. Paper, Table 2.
    """

    kind: Literal["las"] = "las"
    smooth_head: Annotated[SmoothFactor, Field(description="smooth factor of the largest class, in [0, 1)")] = 0.4
    smooth_tail: Annotated[SmoothFactor, Field(description="smooth factor of the smallest class, in [0, 1)")] = 0.1
    sampler: Sampler = Field(default=ClassBalanced(), description="order in which training images are visited")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        head, tail = lanes["smooth_head"].unsqueeze(-1), lanes["smooth_tail"].unsqueeze(-1)
        fewest = class_counts.min()
        # If all classes have the same size, each of them is the largest.
        places = ((class_counts - fewest) / (class_counts.max() - fewest)).nan_to_num(1.0)
        return CrossEntropy(smooth_factor=tail + (head - tail) * (math.pi / 2 * places).sin())


@METHODS.register
class BalancedSoftmax(TrainedMethod):
    """Cross entropy of `z + log n`: log class sizes are added to the logits, so that the head does not learn them.

    Source: Ren et al. 2020, Balanced Meta-Softmax for Long-Tailed Visual Recognition; paper, Table 1.
    """

    corrects_prior: ClassVar[bool] = True
    needs_all_classes: ClassVar[bool] = True

    kind: Literal["balanced_softmax"] = "balanced_softmax"

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy(shift=class_counts.log())


@METHODS.register
class LogitAdjustLoss(TrainedMethod):
    """Cross entropy of `z + tau log p` in training; tau = 1 is `balanced_softmax`, tau = 0 is `ce`.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment, Eq. 10.
    """

    corrects_prior: ClassVar[bool] = True

    kind: Literal["logit_adjust_loss"] = "logit_adjust_loss"
    tau: Annotated[float, BATCHED, Field(ge=0, description="factor of the log prior added in training, >= 0")] = 1.0
    prior: Prior = None

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy(shift=lanes["tau"].unsqueeze(-1) * log_prior(self.prior, class_counts))

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `MethodSpec.incompatibility`."""
        return super().incompatibility(class_counts) or prior_incompatibility(self.prior, class_counts)


@METHODS.register
class LDAM(TrainedMethod):
    """Label-distribution-aware margin: the true logit is lowered in training by `max_margin (n_min / n_y)^(1/4)`.

    On the cosine head the margin is in cosines and is multiplied by the scale of the head. On a head without a scale,
    such as `linear`, it is in logits: the literal form of Table 1 of the paper, which omits the bias from every row
    "for simplicity"; here the bias is trained. Source: Cao et al. 2019, Learning Imbalanced Datasets with
    Label-Distribution-Aware Margin Loss; paper, Table 1.
    """

    needs_all_classes: ClassVar[bool] = True

    kind: Literal["ldam"] = "ldam"
    head: Head = Field(default=heads.Cosine(), description="the classifier; margins are in cosines only with `cosine`")
    max_margin: Annotated[
        float, BATCHED, Field(ge=0, description="margin of the smallest class, >= 0; 0 means no margin")
    ] = 0.5

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        scale = self.head.logit_scale(part_of(lanes, "head"))
        shares = (class_counts.min() / class_counts) ** 0.25
        return CrossEntropy(margin=(lanes["max_margin"] * scale).unsqueeze(-1) * shares)


@METHODS.register
class Cosine(CrossEntropyMethod):
    """Cross entropy of cosine logits, so the norms of weight rows have no effect.

    Rows start as the normalised rows of the stage-1 head.

    Source: Liu et al. 2019, Large-Scale Long-Tailed Recognition in an Open World (OLTR, with `head.squash`); paper,
    Table 1.
    """

    kind: Literal["cosine"] = "cosine"
    head: heads.Cosine = Field(default=heads.Cosine(), description="the cosine classifier")


@METHODS.register
class MaxNorm(CrossEntropyMethod):
    """Cross entropy with bounded weight rows: rows longer than a radius are scaled to it during training.

    Source: Alshammari et al. 2022, Long-Tailed Recognition via Weight Balancing; `ltwb` is its complete stage 2. Paper,
    Table 1.
    """

    kind: Literal["maxnorm"] = "maxnorm"
    constraint: constraints.MaxNorm = Field(
        default=constraints.MaxNorm(), description="radius of the weight rows, and when they are projected"
    )
