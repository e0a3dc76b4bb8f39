"""The stage-1 recipes: each composes a loss, a learning-rate schedule and, optionally, deferred re-weighting.

| kind               | loss                        | schedule     | re-weighting |
| ------------------ | --------------------------- | ------------ | ------------ |
| `ce`               | cross entropy               | cosine       | none         |
| `ce_steps`         | cross entropy               | LDAM's steps | none         |
| `ce_drw`           | cross entropy               | LDAM's steps | deferred     |
| `ldam_drw`         | LDAM on a normalised head   | LDAM's steps | deferred     |
| `balanced_softmax` | cross entropy of z + log n  | LDAM's steps | none         |

`ce` is the paper's stage 1, and LTWB's strong baseline when weight decay is large. The others are those of Table 4.

Shapes: B batch, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lt_train.core.lazy import functional, torch
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.losses.priors import effective_number_weights, empty_classes
from lt_train.pretrain.base import RecipeSpec
from lt_train.pretrain.schedule import Epoch, StepSchedule, share

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BalancedSoftmaxRecipe",
    "CrossEntropyRecipe",
    "CrossEntropySteps",
    "DeferredCrossEntropy",
    "DeferredReweighting",
    "LdamRecipe",
]


class DeferredReweighting(RecipeSpec):
    """The part that weights losses by the effective number of images of the true class, from some epoch on (DRW).

    Source: Cao et al. 2019. The features are first learned with the plain loss; the weights are applied afterwards.
    """

    reweight_epoch: Epoch | None = Field(
        default=None, description="first epoch with weighted losses; null: 4/5 of epochs, 160 of 200"
    )
    beta: Annotated[float, Field(ge=0, lt=1, description="weights are (1 - beta) / (1 - beta^n), in [0, 1)")] = 0.9999
    weighted_mean: Literal["weights", "batch"] = Field(
        default="weights",
        description="divisor of a batch's sum of weighted losses: the sum of its weights, as in torch and LDAM's code, "
        "or its number of images",
    )

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `RecipeSpec.incompatibility`."""
        return empty_classes(class_counts)

    def reweighted(self, losses: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """Per-sample losses `[B]`, from `reweight_epoch` on times the weight of their class (mean 1 over classes).

        With `weighted_mean: weights` they are also divided by the batch's mean weight, so that their plain mean equals
        torch's weighted mean.
        """
        start = self.reweight_epoch if self.reweight_epoch is not None else share(self.epochs, 4, 5)
        if epoch < start:
            return losses
        beta = torch.tensor(self.beta, dtype=torch.float64, device=losses.device)
        weights = effective_number_weights(beta, class_counts).to(losses.dtype)[labels]
        return losses * (weights / weights.mean() if self.weighted_mean == "weights" else weights)


class CrossEntropyRecipe(RecipeSpec):
    """Cross entropy without label smoothing or class weights, on a cosine schedule."""

    kind: Literal["ce"] = "ce"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits)[labels]`, float `[B]`."""
        return _cross_entropy(logits, labels)


class CrossEntropySteps(StepSchedule):
    """Cross entropy on LDAM's schedule: `ce_drw` without re-weighting, or `ce` with another schedule."""

    kind: Literal["ce_steps"] = "ce_steps"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits)[labels]`, float `[B]`."""
        return _cross_entropy(logits, labels)


class DeferredCrossEntropy(StepSchedule, DeferredReweighting):
    """Cross entropy on LDAM's schedule with deferred re-weighting (Cao et al. 2019)."""

    kind: Literal["ce_drw"] = "ce_drw"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`w_y * -log softmax(logits)[y]`, float `[B]`; w is 1 before `reweight_epoch`."""
        return self.reweighted(_cross_entropy(logits, labels), labels, class_counts, epoch)


class LdamRecipe(StepSchedule, DeferredReweighting):
    """LDAM with deferred re-weighting: margins that grow for rare classes on a normalised head (Cao et al. 2019).

    Logits are `s cos(W_k, f)`; in training the true one is lowered by `s m_y`. The backbone's features are
    normalised, f / |f|, because the head uses only their direction. Re-training starts from the linear head with rows
    s W_k / |W_k| and bias 0, which gives exactly the logits of stage 1.
    """

    kind: Literal["ldam_drw"] = "ldam_drw"
    scale: Annotated[float, Field(gt=0, description="s, the factor of the cosines, > 0")] = 30.0
    max_margin: Annotated[
        float,
        Field(ge=0, description="margin of the smallest class in cosines, >= 0; others are proportional to n^(-1/4)"),
    ] = 0.5

    def cosine_scale(self) -> float | None:
        """See `RecipeSpec.cosine_scale`."""
        return self.scale

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`w_y * -log softmax(logits - s m_y e_y)[y]` with `m_y = max_margin (n_min / n_y)^(1/4)`, float `[B]`."""
        margin = self.scale * self.max_margin * (class_counts.min() / class_counts) ** 0.25
        losses = CrossEntropy(margin=margin.to(logits.dtype))(logits, labels)
        return self.reweighted(losses, labels, class_counts, epoch)


class BalancedSoftmaxRecipe(StepSchedule):
    """Cross entropy of `z + log n` on LDAM's schedule (Ren et al. 2020).

    The logarithms of the class sizes are added in training only, so that the network need not learn them.
    """

    kind: Literal["balanced_softmax"] = "balanced_softmax"

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `RecipeSpec.incompatibility`."""
        return empty_classes(class_counts)

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits + log n)[y]`, float `[B]`."""
        return CrossEntropy(shift=class_counts.log())(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")
