"""Method `lws`: learnable weight scaling (Kang et al. 2020; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import LearningRate, Sampler, TrainedMethod, WeightDecay
from lt_train.methods.heads.lws import LearnableWeightScaling
from lt_train.methods.samplers.class_balanced import ClassBalanced

__all__ = ["WeightScaling"]


class WeightScaling(TrainedMethod):
    """One factor a class is trained on class-balanced batches; the stage-1 head keeps its directions.

    Source: Kang et al. 2020, Decoupling Representation and Classifier; learning rate .2 and weight decay 5e-4 are its
    code's. Other samplers are allowed.
    """

    kind: Literal["lws"] = "lws"
    lr: LearningRate = 0.2
    weight_decay: WeightDecay = 5e-4
    head: LearnableWeightScaling = Field(
        default=LearnableWeightScaling(), description="factors on the stage-1 classifier's logits"
    )
    sampler: Sampler = Field(default=ClassBalanced(), description="order in which training images are visited")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy()
