"""The search of one method as an Optuna study, for the tools of Optuna."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lt_train.core.errors import LongtailError, UserError
from sweeps.analysis import selection
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.search.base import Tried

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

    from sweeps.search.optuna_studies import PastTrial

__all__ = ["to_optuna"]


def to_optuna(sweep: Sweep, method: str | None = None, storage: str | BaseStorage | None = None) -> Study:
    """See `sweeps.api.sweep.OpenSweep.to_optuna`."""
    from sweeps.search.optuna_studies import past_study

    candidates = {one.name: one for one in sweep.spec.candidates()}
    if method is None and len(candidates) == 1:
        (method,) = candidates
    if method not in candidates:
        raise UserError(
            f"method must be one of {', '.join(candidates)}, because a study has one search space, got {method!r}"
        )
    name = sweep.spec.name if len(candidates) == 1 else f"{sweep.spec.name}-{method}"
    chosen = sweep.spec.selection
    trials = [_past(sweep, one) for one in sweep.searched if one.trial.candidate == method]
    return past_study(name, candidates[method].space, trials, f"{chosen.metric} on {chosen.on}", storage)


def _past(sweep: Sweep, one: TrialRuns) -> PastTrial:
    from sweeps.search.optuna_studies import PastTrial

    recorded = sweep.ledger.trials[one.trial.name]
    attributes: dict[str, Any] = {"trial": one.trial.name, "seeds": list(one.seeds)}
    for place, score in enumerate(one.scores):
        values = [None if record.test is None else record.test[place] for record in one.records]
        if (mean := selection.mean_of_all(values)) is not None:
            attributes[score.name] = mean
    attributes |= {"failure": one.failure} if one.failure else {}
    if one.objective is None:
        tried = Tried(one.trial.params, "failed")
    elif one.stopped is not None:
        tried = Tried(one.trial.params, "stopped", one.objective, one.stopped)
    else:
        tried = Tried(one.trial.params, "finished", one.objective)
    return PastTrial(
        tried,
        {} if one.failed else _curve(sweep, one),
        attributes,
        started=recorded.at_ms / 1000,
        ended=max(record.at_ms for record in one.records) / 1000,
    )


def _curve(sweep: Sweep, one: TrialRuns) -> dict[int, float]:
    """The selection metric after each epoch, from 1, mean over seeds; empty if the arrays cannot be read."""
    try:
        curve = one.curves(sweep.spec.selection.on)[:, :, sweep.column].mean(axis=0)
    except LongtailError:
        return {}
    return {epoch: float(value) for epoch, value in enumerate(curve, start=1) if not math.isnan(value)}
