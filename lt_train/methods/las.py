"""Method `las`: label-aware smoothing (MiSLAS, Zhong et al. 2021; paper, Table 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import Sampler, SmoothFactor, TrainedMethod
from lt_train.methods.samplers.class_balanced import ClassBalanced

__all__ = ["LabelAwareSmoothing"]


class LabelAwareSmoothing(TrainedMethod):
    """Labels are smoothed by class, the more the larger it is: from `smooth_tail` to `smooth_head`, by a sine.

    `d_k = tail + (head - tail) sin(pi/2 (n_k - n_min) / (n_max - n_min))`; where all classes are of one size, d is
    `smooth_head`. A `smooth_head` below `smooth_tail` is allowed: the two are searched each on its own, and the formula
    holds. Source: Zhong et al. 2021, Improving Calibration for Long-Tailed Recognition (.4 and .1 for CIFAR100-LT with
    IR 100; there with learnable weight scaling on top, and mixup in stage 1).
    """

    kind: Literal["las"] = "las"
    smooth_head: Annotated[SmoothFactor, Field(description="smooth factor of the largest class, in [0, 1)")] = 0.4
    smooth_tail: Annotated[SmoothFactor, Field(description="smooth factor of the smallest class, in [0, 1)")] = 0.1
    sampler: Sampler = Field(default=ClassBalanced(), description="order in which training images are visited")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        head, tail = lanes["smooth_head"].unsqueeze(-1), lanes["smooth_tail"].unsqueeze(-1)
        fewest = class_counts.min()
        # Without a range, every class is the largest one.
        places = ((class_counts - fewest) / (class_counts.max() - fewest)).nan_to_num(1.0)
        return CrossEntropy(smooth_factor=tail + (head - tail) * (math.pi / 2 * places).sin())
