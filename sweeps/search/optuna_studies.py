"""Optuna studies that are built from recorded trials. Imports Optuna, so this module is imported where it is used.

A study lives as long as one call: nothing is kept between proposal batches. Dimensions are sorted by path, so the order
of a file has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lt_train.core.errors import UserError
from lt_train.core.io import fingerprint
from sweeps.search.base import Choice, Dimension, IntRange, LogUniform, Tried

__all__ = ["JointTPE", "PastTrial", "ask", "past_study", "study_of", "trial_seed"]

optuna.logging.set_verbosity(optuna.logging.ERROR)

_STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_ANY_TIME = datetime(2000, 1, 1)
"""Optuna requires the times of a trial; no sampler reads them."""


class JointTPE(TPESampler):
    """TPE that models all dimensions of `space` jointly.

    Optuna finds the joint dimensions by comparing the distributions of all trials. Here all trials have the same
    distributions, so the comparison is skipped: it would take a third of the time of a proposal.

    Args:
        space: the searched dimensions.
        options: of Optuna's `TPESampler`.
    """

    def __init__(self, space: Mapping[str, Dimension], **options: Any) -> None:
        super().__init__(multivariate=True, **options)
        distributions = _distributions(space)
        self._joint = {path: one for path, one in distributions.items() if not one.single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All dimensions with more than one value; none before a trial has ended, as in Optuna."""
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return self._joint if ended else {}


def ask(
    space: Mapping[str, Dimension], tried: Iterable[Tried], numbers: range, sampler: Callable[[int], BaseSampler]
) -> list[dict[str, Any]]:
    """The values of the trials `numbers`. Each of them is asked while the ones before it are running.

    Args:
        space: the searched dimensions.
        tried: the earlier trials that the sampler learns from.
        numbers: of the trials to propose.
        sampler: creates the sampler of the trial with the given number.
    """
    study = study_of(space, tried)
    distributions = _distributions(space)
    proposed = []
    for number in numbers:
        study.sampler = sampler(number)
        params = study.ask(fixed_distributions=distributions).params
        proposed.append({path: params[path] for path in distributions})
    return proposed


def trial_seed(seed: int, number: int) -> int:
    """The seed of the sampler of trial `number`.

    A trial has a seed of its own, so its values do not depend on which trials are proposed in the same call.
    """
    return int(fingerprint(["search", seed, number])[:8], 16)


def study_of(space: Mapping[str, Dimension], tried: Iterable[Tried]) -> Study:
    """A study with the trials `tried`, which Optuna treats like trials that it has proposed itself.

    Trials outside `space` are left out: those with a value outside a narrowed range, with a choice that was removed, or
    without a value of a dimension that was added.
    """
    study = optuna.create_study(direction="maximize")
    distributions = _distributions(space)
    for one in tried:
        trial = _frozen(one, distributions)
        try:
            study.add_trial(trial)
        except ValueError:  # Optuna has found that the trial does not fit its distributions
            continue
    return study


@dataclass(frozen=True)
class PastTrial:
    """A trial of a search as it was, for `past_study`.

    Attributes:
        tried: its values, state and objective.
        intermediate: the objective's metric after each epoch.
        attributes: user attributes.
        started, ended: when its first run was requested and its last one recorded, in seconds since 1970.
    """

    tried: Tried
    intermediate: Mapping[int, float]
    attributes: Mapping[str, Any]
    started: float
    ended: float


def past_study(
    name: str, space: Mapping[str, Dimension], trials: Iterable[PastTrial], metric: str, storage: Any = None
) -> Study:
    """A study for people, with all trials of a search and what is known of them; no sampler learns from it.

    Args:
        name: of the study.
        space: the searched dimensions.
        trials: in the order of their numbers.
        metric: what the values are.
        storage: as for `optuna.create_study`; None for memory.

    Raises:
        UserError: the storage has a study of this name.
    """
    try:
        study = optuna.create_study(study_name=name, direction="maximize", storage=storage)
    except optuna.exceptions.DuplicatedStudyError:
        raise UserError(f"{storage} has a study {name} already; delete it, or choose another storage") from None
    study.set_user_attr("objective", metric)
    distributions = _distributions(space)
    for one in trials:
        trial = FrozenTrial(
            number=-1,  # the study sets number and trial_id
            trial_id=-1,
            state=_STATES[one.tried.state],
            value=one.tried.value,
            params={path: one.tried.params[path] for path in distributions},
            distributions=distributions,
            intermediate_values=dict(one.intermediate),
            user_attrs=dict(one.attributes),
            system_attrs={},
            datetime_start=datetime.fromtimestamp(one.started),
            datetime_complete=datetime.fromtimestamp(one.ended),
        )
        study.add_trial(trial)
    return study


class _UncopiedTrial(FrozenTrial):
    """A trial that the storage of a study does not copy: copies take most of the time of building a study."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _UncopiedTrial:
        return self


def _frozen(tried: Tried, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """`tried` as Optuna's type.

    A trial that was stopped early is a pruned one: TPE ranks it below the trials that ran to the end, and higher the
    longer it ran.
    """
    params = tried.params
    intermediate = {}
    if tried.state == "stopped":
        assert tried.epochs is not None
        assert tried.value is not None
        intermediate = {tried.epochs: tried.value}
    return _UncopiedTrial(
        number=-1,  # the study sets number and trial_id
        trial_id=-1,
        state=_STATES[tried.state],
        value=tried.value,
        params={path: params[path] for path in distributions if path in params},
        distributions=distributions,
        intermediate_values=intermediate,
        user_attrs={},
        system_attrs={},
        datetime_start=_ANY_TIME,
        datetime_complete=None if tried.state == "running" else _ANY_TIME,
    )


def _distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    return {path: _distribution(space[path]) for path in sorted(space)}


def _distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna's type."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if isinstance(dimension, IntRange):
        low, high = dimension.bounds
        return IntDistribution(low, high)
    return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
