"""Cross entropy on class-balanced batches: `Resample` (from the stage-1 head) and `CRT` (from a random head)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lt_train.methods import samplers
from lt_train.methods.base import CrossEntropyMethod

__all__ = ["CRT", "Resample"]


class Resample(CrossEntropyMethod):
    """Trains the stage-1 head further with all classes equally frequent in a batch. Paper, Table 1."""

    kind: Literal["resample"] = "resample"
    sampler: samplers.ClassBalanced = Field(
        default=samplers.ClassBalanced(), description="class-balanced batches, the only difference from `ce`"
    )


class CRT(CrossEntropyMethod):
    """Classifier re-training: trains a randomly initialised head with all classes equally frequent in a batch.

    Source: Kang et al. 2020, Decoupling Representation and Classifier (there with learning rate 0.2, weight decay 5e-4,
    batches of 512 and 10 epochs); paper, Table 2.
    """

    kind: Literal["crt"] = "crt"
    init: Literal["random"] = Field(
        default="random", description="random initialisation, the only difference from `resample`"
    )
    sampler: samplers.ClassBalanced = Field(
        default=samplers.ClassBalanced(), description="class-balanced batches: all classes equally frequent"
    )
