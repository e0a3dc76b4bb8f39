"""Optuna: the state in which it gets a trial, and the importance of hyperparameters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from sweeps.search.algorithms import MIN_TRIALS, OptunaSearch, importances
from sweeps.search.base import Choice, Dimension, LogUniform, Space, Uniform


class Listener(RandomSampler):
    """Records what a sampler gets when a trial ends."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.received: dict[int, tuple[Any, ...]] = {}

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.received[trial.number] = (state.name, values, trial.last_step)


def test_a_stopped_trial_is_pruned_with_its_value_and_epochs() -> None:
    dimensions: Space = TypeAdapter(Space).validate_json('{"a": {"uniform": [0, 1]}}')
    listener = Listener()
    search = OptunaSearch(listener, dimensions)
    for number in range(4):
        search.ask(number)
    search.tell(2, 0.9, 5)
    search.tell(0, 0.1)
    search.tell(3, None, 5)
    search.tell(1, 0.2, 10)
    assert listener.received == {
        0: ("COMPLETE", [0.1], None),
        1: ("PRUNED", [0.2], 10),
        2: ("PRUNED", [0.9], 5),
        3: ("FAIL", None, None),
    }


SPACE: dict[str, Dimension] = {
    "method.smooth_factor": Uniform(uniform=[0.0, 1.0]),
    "method.lr": LogUniform(loguniform=[1e-4, 1e-1]),
    "method.init": Choice(choice=["checkpoint", "random"]),
}


def trials(count: int, slope: float = 1.0) -> list[tuple[dict[str, Any], float]]:
    stream = random.Random(0)
    found = []
    for _ in range(count):
        params = {
            "method.smooth_factor": stream.random(),
            "method.lr": 10 ** stream.uniform(-4, -1),
            "method.init": stream.choice(["checkpoint", "random"]),
        }
        found.append((params, slope * params["method.smooth_factor"]))
    return found


def test_the_most_important_parameter_comes_first_and_shares_sum_to_one() -> None:
    shares = importances(SPACE, trials(60))
    assert next(iter(shares)) == "method.smooth_factor"
    assert shares["method.smooth_factor"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)


def test_the_same_trials_give_the_same_shares() -> None:
    assert importances(SPACE, trials(20)) == importances(SPACE, trials(20))


def test_too_few_trials_equal_trials_and_no_space_have_no_importance() -> None:
    assert importances(SPACE, trials(MIN_TRIALS - 1)) == {}
    assert importances(SPACE, trials(30, slope=0.0)) == {}
    assert importances({}, trials(30)) == {}
