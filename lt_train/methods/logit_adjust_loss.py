"""Method `logit_adjust_loss`: cross entropy of `z + tau log p` (Menon et al. 2021, Eq. 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.priors import Prior, log_prior, unfit_prior
from lt_train.methods.base import TrainedMethod

__all__ = ["LogitAdjustedLoss"]


class LogitAdjustedLoss(TrainedMethod):
    """The log prior is added to the logits in training only, tau times; tau 1 is `balanced_softmax`, tau 0 is `ce`.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment.
    """

    corrects_prior: ClassVar[bool] = True

    kind: Literal["logit_adjust_loss"] = "logit_adjust_loss"
    tau: Annotated[float, Field(ge=0, description="how many times the log prior is added in training, >= 0")] = 1.0
    prior: Prior = None

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return CrossEntropy(shift=lanes["tau"].unsqueeze(-1) * log_prior(self.prior, class_counts))

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `MethodSpec.unfit`."""
        return super().incompatibility(class_counts) or unfit_prior(self.prior, class_counts)
