"""Method `focal`: focal loss on softmax probabilities (Lin et al. 2017; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lt_train.losses.base import Loss
from lt_train.losses.focal import Focal
from lt_train.methods.base import TrainedMethod

__all__ = ["FocalLoss", "Gamma"]

Gamma = Annotated[float, Field(ge=0, description="focusing exponent of the focal loss, >= 0; 0 is cross entropy")]


class FocalLoss(TrainedMethod):
    """Images that are classified well already count less, by `(1 - p_y)^gamma`.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection (gamma 2; LDAM's code runs it with 1).
    """

    kind: Literal["focal"] = "focal"
    gamma: Gamma = 2.0

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        """See `TrainedMethod.loss`."""
        return Focal(lanes["gamma"].unsqueeze(-1))
