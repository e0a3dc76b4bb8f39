"""Method `tau_norm`: the stage-1 head with normalised rows (Kang et al. 2020; paper, Table 1). Trains nothing."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lt_train.methods.base import MethodSpec
from lt_train.methods.heads.linear import Linear
from lt_train.methods.post_hoc.tau_norm import TauNorm

__all__ = ["TauNormalization"]


class TauNormalization(MethodSpec):
    """Every weight row of the stage-1 head is divided by its length to the power `post_hoc.tau`.

    Source: Kang et al. 2020, Decoupling Representation and Classifier. It searches tau in steps of .1 from 0 to 2; the
    whole grid costs one pass over the features.
    """

    trains: ClassVar[bool] = False

    kind: Literal["tau_norm"] = "tau_norm"
    head: Linear = Field(default=Linear(), description="the stage-1 classifier")
    post_hoc: TauNorm = Field(default=TauNorm(), description="the power, and what becomes of the bias")
