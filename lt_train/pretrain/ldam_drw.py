"""`ldam_drw`: margins that grow for rare classes on a normalised head, then re-weighting (Cao et al. 2019; Table 4)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.pretrain.deferred import DeferredReweighting

__all__ = ["LabelDistributionAwareMarginRecipe"]


class LabelDistributionAwareMarginRecipe(DeferredReweighting):
    """LDAM on LDAM's schedule: logits are `s cos(W_k, f)`, and in training the true one is lowered by s m_y.

    Features of such a checkpoint are the directions f / |f|, for the head sees nothing else; it starts re-training as
    the linear head with rows s W_k / |W_k| and bias 0, which gives the very logits of stage 1.
    """

    kind: Literal["ldam_drw"] = "ldam_drw"
    scale: Annotated[float, Field(gt=0, description="s, the factor of the cosines, > 0")] = 30.0
    max_margin: Annotated[
        float, Field(ge=0, description="margin of the smallest class in cosines, >= 0; n^(-1/4) says the others'")
    ] = 0.5

    def cosine_scale(self) -> float | None:
        """See `RecipeSpec.cosine_scale`."""
        return self.scale

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`w_y * -log softmax(logits - s m_y e_y)[y]` with `m_y = max_margin (n_min / n_y)^(1/4)`, float `[B]`."""
        margin = self.scale * self.max_margin * (class_counts.min() / class_counts) ** 0.25
        losses = CrossEntropy(margin=margin.to(logits.dtype))(logits, labels)
        return self.reweighted(losses, labels, class_counts, epoch)
