"""Deferred re-weighting (DRW, Cao et al. 2019): plain losses first, class-balanced weights once features are formed.

For recipes that share it; touch this to change the weights. Knows torch only. Shapes: B batch, K classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lt_train.losses.priors import effective_number_weights, empty_classes
from lt_train.pretrain.schedule import Epoch, StepRecipe, share

__all__ = ["DeferredReweighting"]


class DeferredReweighting(StepRecipe):
    """Base of recipes that weigh losses by the effective number of images of the true class, from some epoch on."""

    reweight_epoch: Epoch | None = Field(
        default=None, description="epoch from which losses are weighted; null: 4/5 of epochs, 160 of 200"
    )
    beta: Annotated[float, Field(ge=0, lt=1, description="weights are (1 - beta) / (1 - beta^n), in [0, 1)")] = 0.9999
    weighted_mean: Literal["weights", "batch"] = Field(
        default="weights",
        description="what a batch's sum of weighted losses is divided by: its weights, as in torch and LDAM's code, or "
        "its images",
    )

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `RecipeSpec.unfit`."""
        return empty_classes(class_counts)

    def reweighted(self, losses: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """Per-sample losses `[B]` times the weight of their class (mean 1 over classes), from `reweight_epoch` on.

        With `weighted_mean: weights` also over the batch's mean weight, so that their plain mean is torch's weighted.
        """
        start = self.reweight_epoch if self.reweight_epoch is not None else share(self.epochs, 4, 5)
        if epoch < start:
            return losses
        beta = torch.tensor(self.beta, dtype=torch.float64, device=losses.device)
        weights = effective_number_weights(beta, class_counts).to(losses.dtype)[labels]
        return losses * (weights / weights.mean() if self.weighted_mean == "weights" else weights)
