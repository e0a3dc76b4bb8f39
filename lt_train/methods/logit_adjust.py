"""Method `logit_adjust`: the stage-1 head less the log prior (Menon et al. 2021; paper, Table 1). Trains nothing."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lt_train.methods.base import MethodSpec
from lt_train.methods.heads.linear import Linear
from lt_train.methods.post_hoc.logit_adjust import LogitAdjust

__all__ = ["PostHocLogitAdjustment"]


class PostHocLogitAdjustment(MethodSpec):
    """The logarithm of the class prior is taken off the stage-1 head's logits, `post_hoc.tau` times.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment; `logit_adjust_loss` does it in training instead.
    """

    trains: ClassVar[bool] = False

    kind: Literal["logit_adjust"] = "logit_adjust"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: LogitAdjust = Field(default=LogitAdjust(), description="how often the log prior is taken off, and which")
