"""`los`: Label Over-Smooth, the paper's method (section 3.2, Eq. 12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import SmoothFactor, TrainedMethod

__all__ = ["LabelOverSmooth"]


class LabelOverSmooth(TrainedMethod):
    """Cross entropy against labels smoothed almost to uniform; needs no class counts.

    The paper uses d = .98 on CIFAR100-LT and .99 on ImageNet-LT and iNaturalist 2018. With few classes the best d
    is lower: search it.
    """

    kind: Literal["los"] = "los"
    smooth_factor: SmoothFactor = 0.98

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy(smooth_factor=lanes["smooth_factor"].unsqueeze(-1))
