"""Method `ltwb`: weight balancing, stage 2 (Alshammari et al. 2022; paper, Table 2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lt_train.methods.base import LearningRate, WeightDecay
from lt_train.methods.class_balanced import WeightedByEffectiveNumber
from lt_train.methods.constraints.maxnorm import MaxNorm

__all__ = ["WeightBalancing"]


class WeightBalancing(WeightedByEffectiveNumber):
    """`maxnorm` and `class_balanced` together, with a strong weight decay.

    Source: Alshammari et al. 2022, Long-Tailed Recognition via Weight Balancing. It trains 10 epochs, which is not part
    of a method: set `training: {epochs: 10}`.
    """

    kind: Literal["ltwb"] = "ltwb"
    lr: LearningRate = 0.01
    weight_decay: WeightDecay = 0.1
    constraint: MaxNorm = Field(default=MaxNorm(), description="the radius, and how often rows are cut")
