"""Method `ldam`: margins that grow for rare classes (Cao et al. 2019; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lt_train.core.lanes import part_of
from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.priors import empty_classes
from lt_train.methods.base import Head, TrainedMethod
from lt_train.methods.heads.cosine import Cosine

__all__ = ["LabelDistributionAwareMargin"]


class LabelDistributionAwareMargin(TrainedMethod):
    """The true logit is lowered in training by `m_y = max_margin (n_min / n_y)^(1/4)`, in cosines times the scale.

    On a head without a scale, such as `linear`, the margin is in logits: the literal form of the paper's Table 1, which
    leaves the bias out of every row "for simplicity"; the linear head's is trained here as everywhere.
    Source: Cao et al. 2019, Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss.
    """

    kind: Literal["ldam"] = "ldam"
    head: Head = Field(default=Cosine(), description="the classifier; margins count in cosines on `cosine` alone")
    max_margin: Annotated[float, Field(ge=0, description="margin of the smallest class, >= 0; 0 is no margin")] = 0.5

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        scale = self.head.logit_scale(part_of(lanes, "head"))
        shares = (class_counts.min() / class_counts) ** 0.25
        return CrossEntropy(margin=(lanes["max_margin"] * scale).unsqueeze(-1) * shares)

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `MethodSpec.unfit`."""
        return super().incompatibility(class_counts) or empty_classes(class_counts)
