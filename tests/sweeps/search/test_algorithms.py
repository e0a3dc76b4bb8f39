"""Search algorithms: the grid follows the file, random search ignores results, TPE concentrates on good trials."""

from __future__ import annotations

import statistics

from pydantic import TypeAdapter

from sweeps.search.algorithms import Grid, RandomSearch, TreeParzen
from sweeps.search.base import Space


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
