"""The built-in search algorithms, Optuna behind them, and the importance of hyperparameters."""

import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from sweeps.search.algorithms import MIN_TRIALS, Grid, OptunaSearch, RandomSearch, TreeParzen, importances
from sweeps.search.base import Choice, Dimension, LogUniform, Space, Uniform


def space(text: str) -> Space:
    result: Space = TypeAdapter(Space).validate_json(text)
    return result


def test_a_grid_follows_the_order_of_the_file() -> None:
    points = space('{"b": {"choice": ["x", "y"]}, "a": {"int": [1, 3]}}')
    search = Grid().start(points, seed=0)
    walked = [search.ask(number) for number in range(7)]
    assert walked == [
        {"b": "x", "a": 1},
        {"b": "x", "a": 2},
        {"b": "x", "a": 3},
        {"b": "y", "a": 1},
        {"b": "y", "a": 2},
        {"b": "y", "a": 3},
        None,
    ]
    assert Grid().size(points) == 6


def test_a_grid_refuses_continuous_ranges() -> None:
    problems = dict(Grid().check(space('{"a": {"int": [1, 3]}, "b": {"uniform": [0, 1]}}')))
    assert problems == {"b": "a grid needs {choice: [...]} or {int: [low, high]}, got {uniform: ...}"}


def test_a_huge_grid_is_not_built_in_memory() -> None:
    huge = space('{"a": {"int": [0, 1000000000]}, "b": {"int": [0, 1000000000]}}')
    assert Grid().start(huge, 0).ask(1_000_000_001) == {"a": 1, "b": 0}


def test_random_search_ignores_results() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    good, bad = RandomSearch().start(dimensions, 3), RandomSearch().start(dimensions, 3)
    for number in range(20):
        assert good.ask(number) == bad.ask(number)
        good.tell(number, 1.0)
        bad.tell(number, *((None,) if number % 2 else (0.5, 3)))
    assert RandomSearch().start(dimensions, 3).ask(0) != RandomSearch().start(dimensions, 4).ask(0)


def test_the_order_of_the_file_has_no_effect_on_optuna() -> None:
    one = space('{"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}')
    other = space('{"b": {"uniform": [0, 1]}, "a": {"uniform": [0, 1]}}')
    for algorithm in (TreeParzen(), RandomSearch()):
        assert algorithm.start(one, 0).ask(0) == algorithm.start(other, 0).ask(0)


def test_tpe_concentrates_where_the_objective_is_high() -> None:
    """60 trials of an objective with its maximum at a = 0.8: the later half is closer to it than random draws."""
    dimensions = space('{"a": {"uniform": [0, 1]}, "b": {"loguniform": [1e-5, 1]}}')

    def later_half(algorithm: TreeParzen | RandomSearch) -> float:
        search = algorithm.start(dimensions, 0)
        distances: list[float] = []
        for number in range(60):
            values = search.ask(number)
            assert values is not None
            distances.append(abs(values["a"] - 0.8))
            search.tell(number, -distances[-1])
        return sum(distances[30:]) / 30

    assert later_half(TreeParzen()) < 0.5 * later_half(RandomSearch())


def test_tpe_is_random_until_startup_trials_are_complete() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    random, late = RandomSearch().start(dimensions, 0), TreeParzen(startup_trials=30).start(dimensions, 0)
    soon = TreeParzen(startup_trials=5).start(dimensions, 0)
    streams = []
    for search in (random, late, soon):
        stream = []
        for number in range(20):
            stream.append(search.ask(number))
            search.tell(number, number / 20)
        streams.append(stream)
    assert streams[0] == streams[1]
    assert streams[0][:5] == streams[2][:5]
    assert streams[0] != streams[2]


def test_tpe_spreads_trials_that_run_at_the_same_time() -> None:
    """40 trials without a result in between: without the constant liar their spread is 0.03 to 0.17 here."""
    search = TreeParzen().start(space('{"a": {"uniform": [0, 1]}}'), 0)
    for number in range(20):
        values = search.ask(number)
        assert values is not None
        search.tell(number, -abs(values["a"] - 0.5))
    together = [values["a"] for number in range(20, 60) for values in [search.ask(number)] if values is not None]
    assert statistics.pstdev(together) > 0.2


def test_tpe_learns_from_trials_that_were_stopped() -> None:
    """Trials far from the maximum at 0.8 are stopped early, with values that are unrelated to it (higher nearer 0)."""
    dimensions = space('{"a": {"uniform": [0, 1]}}')

    def later_half(stop: bool) -> float:
        search = TreeParzen().start(dimensions, 0)
        distances: list[float] = []
        for number in range(60):
            values = search.ask(number)
            assert values is not None
            distances.append(abs(values["a"] - 0.8))
            if stop and distances[-1] > 0.3:
                search.tell(number, 1 - values["a"], 5)
            else:
                search.tell(number, -distances[-1])
        return sum(distances[30:]) / 30

    assert later_half(stop=True) < 1.2 * later_half(stop=False)


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
