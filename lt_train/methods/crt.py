"""Method `crt`: classifier re-training (Kang et al. 2020; paper, Table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import TrainedMethod
from lt_train.methods.samplers.class_balanced import ClassBalanced

__all__ = ["ClassifierRetraining"]


class ClassifierRetraining(TrainedMethod):
    """A fresh head is trained on class-balanced batches; `resample` does so from the stage-1 head.

    Source: Kang et al. 2020, Decoupling Representation and Classifier (there with learning rate .2, weight decay 5e-4,
    batches of 512 and 10 epochs).
    """

    kind: Literal["crt"] = "crt"
    init: Literal["random"] = Field(default="random", description="a fresh head is what makes it `crt`, not `resample`")
    sampler: ClassBalanced = Field(default=ClassBalanced(), description="every class equally often in a batch")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy()
