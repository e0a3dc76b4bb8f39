"""Methods that control the norms of weight rows: `Cosine`, `MaxNorm` and `LTWB`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lt_train.methods import constraints, heads
from lt_train.methods.base import CrossEntropyMethod, LearningRate, WeightDecay
from lt_train.methods.rebalancing import EffectiveNumberMethod

__all__ = ["LTWB", "Cosine", "MaxNorm"]


class Cosine(CrossEntropyMethod):
    """Cross entropy of cosine logits, so the norms of weight rows have no effect.

    Rows start as the normalised rows of the stage-1 head.

    Source: Liu et al. 2019, Large-Scale Long-Tailed Recognition in an Open World (OLTR, with `head.squash`); paper,
    Table 1.
    """

    kind: Literal["cosine"] = "cosine"
    head: heads.Cosine = Field(default=heads.Cosine(), description="the cosine classifier")


class MaxNorm(CrossEntropyMethod):
    """Cross entropy with bounded weight rows: rows longer than a radius are scaled to it during training.

    Source: Alshammari et al. 2022, Long-Tailed Recognition via Weight Balancing; `ltwb` is its complete stage 2. Paper,
    Table 1.
    """

    kind: Literal["maxnorm"] = "maxnorm"
    constraint: constraints.MaxNorm = Field(
        default=constraints.MaxNorm(), description="radius of the weight rows, and when they are projected"
    )


class LTWB(EffectiveNumberMethod):
    """Weight balancing, stage 2: `maxnorm` and `class_balanced` together, with a strong weight decay.

    Source: Alshammari et al. 2022, Long-Tailed Recognition via Weight Balancing; paper, Table 2. The original trains 10
    epochs. Epochs are not part of a method; set `training: {epochs: 10}`.
    """

    kind: Literal["ltwb"] = "ltwb"
    lr: LearningRate = 0.01
    weight_decay: WeightDecay = 0.1
    constraint: constraints.MaxNorm = Field(
        default=constraints.MaxNorm(), description="radius of the weight rows, and when they are projected"
    )
