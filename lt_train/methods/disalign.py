"""Method `disalign`: distribution alignment (Zhang et al. 2021; paper, Table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.priors import empty_classes
from lt_train.methods.base import TrainedMethod
from lt_train.methods.heads.disalign import DistributionAlignment

__all__ = ["AlignedClassifier"]


class AlignedClassifier(TrainedMethod):
    """A factor, an offset and a confidence gate are trained on the stage-1 head, which stays as it is.

    Cross entropy is weighted by `K n_y^-rho / sum_k n_k^-rho`. Source: Zhang et al. 2021, Distribution Alignment: A
    Unified Framework for Long-tail Visual Recognition (rho 1.5 on ImageNet-LT; the released configuration has 1.2, with
    learning rate .1, weight decay 5e-4, batches of 256 and 10 epochs).
    """

    corrects_prior: ClassVar[bool] = True

    kind: Literal["disalign"] = "disalign"
    head: DistributionAlignment = Field(
        default=DistributionAlignment(), description="factors, offsets and gate on the stage-1 classifier's logits"
    )
    rho: Annotated[float, Field(ge=0, description="exponent of the re-weighting by class size, >= 0; 0: none")] = 1.5

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        shares = (-lanes["rho"].unsqueeze(-1) * class_counts.log()).softmax(dim=-1)
        return CrossEntropy(weight=len(class_counts) * shares)

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `MethodSpec.unfit`."""
        return super().incompatibility(class_counts) or empty_classes(class_counts)
