"""`tpe`: Optuna's multivariate Tree-structured Parzen Estimator (Bergstra et al., 2011; Falkner et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from optuna.samplers import TPESampler
from pydantic import Field

from sweeps.search.base import AlgorithmSpec, Dimension, Search
from sweeps.search.optuna_study import OptunaSearch

__all__ = ["TreeParzen"]


class TreeParzen(AlgorithmSpec):
    """Models where good trials lie, over all dimensions together. Trials still running count as poor ones."""

    kind: Literal["tpe"] = "tpe"
    startup_trials: int = Field(default=10, ge=0, description="trials drawn at random before the model is used, >= 0")

    def start(self, space: Mapping[str, Dimension], seed: int) -> Search:
        """See `AlgorithmSpec.start`."""
        # Every option is written out because Optuna changes its defaults between majors; those it has deprecated
        # are the ones left out.
        sampler = TPESampler(
            n_startup_trials=self.startup_trials,
            n_ei_candidates=24,
            seed=seed,
            multivariate=True,
            group=False,
            constant_liar=True,
        )
        return OptunaSearch(sampler, space)
