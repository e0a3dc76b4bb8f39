"""`logit_adjust`: `z_k - tau log p_k` at test (Menon et al. 2021; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lt_train.losses.priors import Prior, log_prior, unfit_prior
from lt_train.methods.post_hoc.base import PostHocSpec

__all__ = ["LogitAdjust"]


class LogitAdjust(PostHocSpec):
    """The logarithm of the class prior is taken off the logits, tau times; tau 0 leaves them."""

    corrects_prior: ClassVar[bool] = True

    kind: Literal["logit_adjust"] = "logit_adjust"
    tau: Annotated[float, Field(ge=0, description="how many times the log prior is taken off, >= 0")] = 1.0
    prior: Prior = None

    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `PostHocSpec.affine`."""
        offset = -lanes["tau"] * log_prior(self.prior, class_counts)
        return torch.ones_like(offset), offset

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `PostHocSpec.unfit`."""
        return unfit_prior(self.prior, class_counts)
