"""`vanilla`: the stage-1 head as it is (Table 1, first row). Trains nothing."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lt_train.methods.base import MethodSpec
from lt_train.methods.heads.linear import Linear

__all__ = ["Vanilla"]


class Vanilla(MethodSpec):
    """Evaluation of the checkpoint's own classifier; needs a bank with a stage-1 head."""

    trains: ClassVar[bool] = False

    kind: Literal["vanilla"] = "vanilla"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: None = Field(default=None, description="none; see the methods tau_norm and logit_adjust")
