"""`random`: independent draws. The honest baseline of every sampler, and the right choice for sensitivity plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from optuna.samplers import RandomSampler

from sweeps.search.base import AlgorithmSpec, Dimension, Search
from sweeps.search.optuna_study import OptunaSearch

__all__ = ["RandomSearch"]


class RandomSearch(AlgorithmSpec):
    """Draws every dimension anew for each trial; results have no influence."""

    kind: Literal["random"] = "random"

    def start(self, space: Mapping[str, Dimension], seed: int) -> Search:
        """See `AlgorithmSpec.start`."""
        return OptunaSearch(RandomSampler(seed=seed), space)
