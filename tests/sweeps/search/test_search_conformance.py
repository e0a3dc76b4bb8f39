"""The contract of every search algorithm in the registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import sweeps
from sweeps.search.base import ALGORITHMS, AlgorithmSpec, Choice, IntRange, Range, Search, Space

KINDS = ALGORITHMS.kinds()

MIXED = """{
  "method.smooth_factor": {"uniform": [0.2, 0.98]},
  "method.lr": {"loguniform": [1e-5, 0.1]},
  "training.epochs": {"int": [1, 20]},
  "method.init": {"choice": ["checkpoint", "random"]}
}"""
FINITE = """{
  "training.epochs": {"int": [1, 5]},
  "training.batch_size": {"choice": [64, 32, 16]},
  "a.b": {"choice": [true, 1.5, null]}
}"""


def space_for(algorithm: AlgorithmSpec) -> Space:
    """A space with every type of dimension, or with those that the algorithm can search."""
    mixed: Space = TypeAdapter(Space).validate_json(MIXED)
    return mixed if not list(algorithm.check(mixed)) else TypeAdapter(Space).validate_json(FINITE)


def outcome(number: int) -> float | None:
    """Failed, tied and different results, by the number of the trial."""
    return None if number % 7 == 3 else [0.5, 0.5, 0.25, 0.75, 0.5][number % 5]


def stopped(number: int) -> int | None:
    """Every third trial is stopped early, including failed ones."""
    return 5 * (1 + number % 2) if number % 3 == 0 else None


def play(search: Search, trials: int, lag: int) -> list[dict[str, Any] | None]:
    """Ask for `trials` trials and report each one `lag` trials later, so that `lag` trials run at the same time."""
    asked = []
    for number in range(trials):
        asked.append(search.ask(number))
        if number >= lag:
            search.tell(number - lag, outcome(number - lag), stopped(number - lag))
    return asked


def play_all(algorithm: AlgorithmSpec) -> dict[str, Any]:
    """The trials with 0, 5 and 24 others running at the same time, as JSON."""
    return {str(lag): play(algorithm.start(space_for(algorithm), 7), 40, lag) for lag in (0, 5, 24)}


def test_the_built_in_algorithms_are_registered() -> None:
    assert {"tpe", "random", "grid"} <= set(KINDS)


@pytest.fixture(params=sorted(KINDS))
def algorithm(request: pytest.FixtureRequest) -> AlgorithmSpec:
    return KINDS[request.param](kind=request.param)


def test_values_stay_inside_their_dimensions_and_are_plain(algorithm: AlgorithmSpec) -> None:
    space = space_for(algorithm)
    for values in play(algorithm.start(space, 0), 40, lag=5):
        assert values is not None
        assert set(values) == set(space)
        for path, dimension in space.items():
            value = values[path]
            assert type(value) in (bool, int, float, str, type(None)), "JSON holds it exactly"
            assert json.loads(json.dumps(value)) == value
            if isinstance(dimension, Range):
                assert dimension.low <= value <= dimension.high
                assert type(value) is dimension.number
            else:
                assert isinstance(dimension, Choice)
                assert value in dimension.values


@pytest.fixture(scope="module")
def other_process() -> dict[str, Any]:
    """The trials of every algorithm in another process: {kind: {lag: trials}}."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_search_conformance import KINDS, play_all\n"
        "print(json.dumps({kind: play_all(KINDS[kind]()) for kind in KINDS}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        cwd=Path(sweeps.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    played: dict[str, Any] = json.loads(done.stdout)
    return played


def test_the_same_asks_and_tells_give_the_same_trials_in_another_process(
    algorithm: AlgorithmSpec, other_process: dict[str, Any]
) -> None:
    assert other_process[algorithm.kind] == play_all(algorithm)


def test_searches_in_one_process_are_independent(algorithm: AlgorithmSpec) -> None:
    space = space_for(algorithm)
    alone = play(algorithm.start(space, 1), 20, lag=3)
    first, second = algorithm.start(space, 1), algorithm.start(space, 2)
    together = []
    for number in range(20):
        together.append(first.ask(number))
        second.ask(number)
        if number >= 3:
            first.tell(number - 3, outcome(number - 3), stopped(number - 3))
            second.tell(number - 3, 0.1)
    assert together == alone


def test_a_search_survives_when_every_trial_is_stopped(algorithm: AlgorithmSpec) -> None:
    search = algorithm.start(space_for(algorithm), 0)
    for number in range(20):
        assert search.ask(number) is not None
        search.tell(number, 0.5, 5)


def test_a_search_survives_when_every_trial_fails(algorithm: AlgorithmSpec) -> None:
    search = algorithm.start(space_for(algorithm), 0)
    for number in range(20):
        assert search.ask(number) is not None
        search.tell(number, None)


def test_size_is_where_asking_ends(algorithm: AlgorithmSpec) -> None:
    space = space_for(algorithm)
    size = algorithm.size(space)
    search = algorithm.start(space, 0)
    asked = [search.ask(number) for number in range(60)]
    assert asked.count(None) == (0 if size is None else 60 - size)


def test_int_dimensions_are_searchable_by_all(algorithm: AlgorithmSpec) -> None:
    space = {"training.epochs": IntRange.model_validate_json('{"int": [3, 4]}')}
    assert not list(algorithm.check(space))
    values = [values for values in play(algorithm.start(space, 0), 20, lag=1) if values is not None]
    assert {one["training.epochs"] for one in values} == {3, 4}, "both ends are included"
