"""Parameter importance: what decides the objective leads, and where there is nothing to learn nothing is said."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sweeps.search.base import Choice, Dimension, LogUniform, Uniform
from sweeps.search.importance import FEWEST_TRIALS, importances

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


def test_what_decides_the_objective_leads_and_shares_sum_to_one() -> None:
    shares = importances(SPACE, trials(60))
    assert next(iter(shares)) == "method.smooth_factor"
    assert shares["method.smooth_factor"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)


def test_the_same_trials_give_the_same_shares() -> None:
    assert importances(SPACE, trials(20)) == importances(SPACE, trials(20))


def test_too_few_trials_equal_trials_and_no_space_have_no_importance() -> None:
    assert importances(SPACE, trials(FEWEST_TRIALS - 1)) == {}
    assert importances(SPACE, trials(30, slope=0.0)) == {}
    assert importances({}, trials(30)) == {}
