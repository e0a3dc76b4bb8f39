"""The contract of every search algorithm in the registry."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import TypeAdapter

import sweeps
from sweeps.search.base import ALGORITHMS, AlgorithmSpec, Choice, IntRange, Range, Space, Tried

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


def ended(params: dict[str, Any], number: int) -> Tried:
    """Failed, stopped, tied and different results, by the number of the trial."""
    if number % 7 == 3:
        return Tried(params, "failed")
    value = [0.5, 0.5, 0.25, 0.75, 0.5][number % 5]
    if number % 3 == 0:
        return Tried(params, "stopped", value, 5 * (1 + number % 2))
    return Tried(params, "finished", value)


def play(algorithm: AlgorithmSpec, space: Space, seed: int, trials: int, batch: int) -> list[dict[str, Any]]:
    """The values of `trials` trials in batches; the batch before is still running when one is proposed."""
    proposed: list[dict[str, Any]] = []
    for start in range(0, trials, batch):
        tried = [
            ended(params, number) if number < start - batch else Tried(params, "running")
            for number, params in enumerate(proposed)
        ]
        proposed += algorithm.propose(space, seed, tried, batch)
    return proposed


def play_all(algorithm: AlgorithmSpec) -> dict[str, Any]:
    """The trials in batches of 1, 5 and 20, as JSON."""
    return {str(batch): play(algorithm, space_for(algorithm), 7, 40, batch) for batch in (1, 5, 20)}


def test_the_built_in_algorithms_are_registered() -> None:
    assert {"tpe", "random", "grid"} <= set(KINDS)


@pytest.fixture(params=sorted(KINDS))
def algorithm(request: pytest.FixtureRequest) -> AlgorithmSpec:
    return KINDS[request.param](kind=request.param)


def test_values_stay_inside_their_dimensions_and_are_plain(algorithm: AlgorithmSpec) -> None:
    space = space_for(algorithm)
    for values in play(algorithm, space, 0, 40, batch=5):
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
    """The trials of every algorithm in another process: {kind: {batch: trials}}."""
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


def test_the_same_trials_give_the_same_proposals_in_another_process(
    algorithm: AlgorithmSpec, other_process: dict[str, Any]
) -> None:
    assert other_process[algorithm.kind] == play_all(algorithm)


def history(algorithm: AlgorithmSpec, space: Space) -> list[Tried]:
    """24 trials that ended and 4 that are running."""
    proposed = play(algorithm, space, 1, 28, batch=4)
    return [ended(params, n) if n < 24 else Tried(params, "running") for n, params in enumerate(proposed)]


def test_a_smaller_count_gives_the_first_of_the_same_trials(algorithm: AlgorithmSpec) -> None:
    space = space_for(algorithm)
    for tried in ([], history(algorithm, space)):
        eight = algorithm.propose(space, 1, tried, 8)
        assert [algorithm.propose(space, 1, tried, count) for count in (0, 1, 5)] == [[], eight[:1], eight[:5]]


def test_proposing_keeps_no_state_and_changes_no_argument(algorithm: AlgorithmSpec) -> None:
    space = space_for(algorithm)
    tried = history(algorithm, space)
    before = copy.deepcopy((space, tried))
    first = algorithm.propose(space, 1, tried, 4)
    algorithm.propose(space, 2, tried[:11], 3)
    other_results = [Tried(one.params, "finished", 0.1) for one in tried]
    algorithm.propose(space, 1, other_results, 4)
    assert algorithm.propose(space, 1, tried, 4) == first
    assert KINDS[algorithm.kind](kind=algorithm.kind).propose(space, 1, copy.deepcopy(tried), 4) == first
    assert (space, tried) == before


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_a_search_survives_when_no_trial_finishes(
    algorithm: AlgorithmSpec, state: Literal["running", "stopped", "failed"]
) -> None:
    space = space_for(algorithm)
    tried: list[Tried] = []
    for _ in range(20):
        (params,) = algorithm.propose(space, 0, tried, 1)
        tried.append(Tried(params, state, 0.5, 5) if state == "stopped" else Tried(params, state))


def test_size_is_where_proposals_end(algorithm: AlgorithmSpec) -> None:
    space = space_for(algorithm)
    size = algorithm.size(space)
    assert len(play(algorithm, space, 0, 64, batch=8)) == (64 if size is None else min(size, 64))
    assert len(algorithm.propose(space, 0, [], 64)) == (64 if size is None else min(size, 64))


def test_int_dimensions_are_searchable_by_all(algorithm: AlgorithmSpec) -> None:
    space: Space = {"training.epochs": IntRange.model_validate_json('{"int": [3, 4]}')}
    assert not list(algorithm.check(space))
    values = play(algorithm, space, 0, 20, batch=1)
    assert {one["training.epochs"] for one in values} == {3, 4}, "both ends are included"
