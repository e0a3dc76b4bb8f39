"""What sets one sampler apart from another, and how dimensions are written."""

from __future__ import annotations

import statistics

import pytest
from pydantic import TypeAdapter, ValidationError

from sweeps.search.base import Space, sampler_kinds
from sweeps.search.grid import Grid
from sweeps.search.random_search import RandomSearch
from sweeps.search.tpe import TreeParzen


def space(text: str) -> Space:
    result: Space = TypeAdapter(Space).validate_json(text)
    return result


def test_every_sampler_has_a_test_here() -> None:
    assert set(sampler_kinds()) == {"grid", "random", "tpe"}, "a new sampler needs a test of its own in this file"


def test_grid_walks_the_product_in_the_order_of_the_file() -> None:
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


def test_grid_refuses_ranges_of_decimals() -> None:
    problems = dict(Grid().check(space('{"a": {"int": [1, 3]}, "b": {"uniform": [0, 1]}}')))
    assert problems == {"b": "a grid needs {choice: [...]} or {int: [low, high]}, got {uniform: ...}"}


def test_grid_writes_no_huge_product_out() -> None:
    huge = space('{"a": {"int": [0, 1000000000]}, "b": {"int": [0, 1000000000]}}')
    assert Grid().start(huge, 0).ask(1_000_000_001) == {"a": 1, "b": 0}


def test_random_takes_no_notice_of_results() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    good, bad = RandomSearch().start(dimensions, 3), RandomSearch().start(dimensions, 3)
    for number in range(20):
        assert good.ask(number) == bad.ask(number)
        good.tell(number, 1.0)
        bad.tell(number, None)
    assert RandomSearch().start(dimensions, 3).ask(0) != RandomSearch().start(dimensions, 4).ask(0)


def test_tpe_gathers_where_the_objective_is_high() -> None:
    """60 trials of a hill at (0.8, 1e-2): the later half must lie nearer than random draws do."""
    dimensions = space('{"a": {"uniform": [0, 1]}, "b": {"loguniform": [1e-5, 1]}}')

    def later_half(sampler: TreeParzen | RandomSearch) -> float:
        search = sampler.start(dimensions, 0)
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


def test_tpe_spreads_trials_that_run_together() -> None:
    """40 trials asked with no result between them: without a constant liar their spread is 0.03 to 0.17 here."""
    search = TreeParzen().start(space('{"a": {"uniform": [0, 1]}}'), 0)
    for number in range(20):
        values = search.ask(number)
        assert values is not None
        search.tell(number, -abs(values["a"] - 0.5))
    together = [values["a"] for number in range(20, 60) for values in [search.ask(number)] if values is not None]
    assert statistics.pstdev(together) > 0.2


def test_optuna_samplers_take_no_notice_of_the_order_of_the_file() -> None:
    one = space('{"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}')
    other = space('{"b": {"uniform": [0, 1]}, "a": {"uniform": [0, 1]}}')
    for sampler in (TreeParzen(), RandomSearch()):
        assert sampler.start(one, 0).ask(0) == sampler.start(other, 0).ask(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"uniform": [0.5, 0.2]}', r"low must be below high, got \[0\.5, 0\.2\]"),
        ('{"uniform": [0.5, 0.5]}', r"low must be below high, got \[0\.5, 0\.5\]"),
        ('{"loguniform": [0, 1]}', r"low must be above 0 on a logarithmic scale, got \[0\.0, 1\.0\]"),
        ('{"int": [2, 1]}', r"low must be below high, got \[2, 1\]"),
        ('{"choice": []}', "at least 1 item"),
        ('{"choice": [1, 2, 1]}', "choices must differ, got 1 twice"),
        ('{"choice": [[1], 2]}', r"choices must be numbers, text, true, false or null, got \[1\]"),
        ('{"uniform": [0, Infinity]}', "finite number"),
    ],
)
def test_senseless_dimensions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space(f'{{"method.lr": {text}}}')
