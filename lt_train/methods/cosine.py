"""Method `cosine`: cross entropy on cosine logits (OLTR, Liu et al. 2019; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import TrainedMethod
from lt_train.methods.heads.cosine import Cosine

__all__ = ["CosineClassifier"]


class CosineClassifier(TrainedMethod):
    """Rows start as the directions of the stage-1 head's and are trained as directions, so no class wins by length.

    Source: Liu et al. 2019, Large-Scale Long-Tailed Recognition in an Open World (there with `head.squash`).
    """

    kind: Literal["cosine"] = "cosine"
    head: Cosine = Field(default=Cosine(), description="the cosine classifier: its scale, and OLTR's squashing")

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy()
