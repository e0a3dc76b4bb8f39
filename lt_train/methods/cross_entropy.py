"""Cross entropy with plain or smoothed labels: `CE`, `LOS` (the method of the paper) and `LAS`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import CrossEntropyMethod, Sampler, SmoothFactor, TrainedMethod
from lt_train.methods.samplers import ClassBalanced

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CE", "LAS", "LOS"]


class CE(CrossEntropyMethod):
    """Plain cross entropy, the loss of stage 1: shows the effect of re-training alone. Paper, Table 4, column "CE"."""

    kind: Literal["ce"] = "ce"


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
