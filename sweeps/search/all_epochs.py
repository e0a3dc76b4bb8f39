"""`all_epochs`: no trial is stopped early. The default."""

from __future__ import annotations

from typing import Literal

from lt_train.methods.base import TrainingSpec
from lt_train.retrain.base import Halving
from sweeps.search.early_stopping import EarlyStoppingSpec

__all__ = ["AllEpochs"]


class AllEpochs(EarlyStoppingSpec):
    """Every trial runs for all its epochs."""

    kind: Literal["all_epochs"] = "all_epochs"

    def halving(self, training: TrainingSpec) -> Halving | None:
        """None: nothing is stopped."""
        return None
