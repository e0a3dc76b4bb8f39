"""Methods that train nothing: `Vanilla`, and `TauNorm` and `LogitAdjust`, which adjust the stage-1 head."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lt_train.methods import post_hoc as adjustments
from lt_train.methods.base import MethodSpec
from lt_train.methods.heads import Linear

__all__ = ["LogitAdjust", "TauNorm", "Vanilla"]


class Vanilla(MethodSpec):
    """The stage-1 head of the checkpoint, unchanged; needs a bank with a stage-1 head. Paper, Table 1, first row."""

    trains: ClassVar[bool] = False

    kind: Literal["vanilla"] = "vanilla"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: None = Field(default=None, description="none; see the methods `tau_norm` and `logit_adjust`")


class TauNorm(MethodSpec):
    """Divides each weight row of the stage-1 head by its norm to the power `post_hoc.tau`.

    Source: Kang et al. 2020, Decoupling Representation and Classifier, which searches tau in steps of 0.1 from 0 to 2;
    the whole grid costs one pass over the features. Paper, Table 1.
    """

    trains: ClassVar[bool] = False

    kind: Literal["tau_norm"] = "tau_norm"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: adjustments.TauNorm = Field(
        default=adjustments.TauNorm(), description="exponent of the norm, and treatment of the bias"
    )


class LogitAdjust(MethodSpec):
    """Subtracts `post_hoc.tau` times the log prior from the logits of the stage-1 head.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment; paper, Table 1. `logit_adjust_loss` does so in
    training.
    """

    trains: ClassVar[bool] = False

    kind: Literal["logit_adjust"] = "logit_adjust"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: adjustments.LogitAdjust = Field(
        default=adjustments.LogitAdjust(), description="factor of the log prior, and the prior"
    )
