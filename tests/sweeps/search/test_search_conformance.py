"""The contract of every search algorithm and early stopping rule in the registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import sweeps
from sweeps.search.base import ALGORITHMS, EARLY_STOPPING, AlgorithmSpec, IntRange, Space
from sweeps.testing import check_algorithm, check_early_stopping
from sweeps.testing.search import SPACES, proposals

KINDS = ALGORITHMS.kinds()


def test_the_built_in_algorithms_are_registered() -> None:
    assert {"tpe", "random", "grid"} <= set(KINDS)


@pytest.fixture(params=sorted(KINDS))
def algorithm(request: pytest.FixtureRequest) -> AlgorithmSpec:
    return KINDS[request.param](kind=request.param)


def test_it_conforms(algorithm: AlgorithmSpec) -> None:
    check_algorithm(algorithm)


@pytest.mark.parametrize("kind", EARLY_STOPPING.kinds())
def test_early_stopping_conforms(kind: str) -> None:
    check_early_stopping(EARLY_STOPPING.kinds()[kind])


def play_all(algorithm: AlgorithmSpec) -> dict[str, Any]:
    """The trials in batches of 1, 5 and 20, as JSON."""
    spaces: list[Space] = [TypeAdapter(Space).validate_json(text) for text in SPACES]
    space = next(one for one in spaces if not list(algorithm.check(one)))
    return {str(batch): proposals(algorithm, space, 7, 40, batch) for batch in (1, 5, 20)}


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


def test_int_dimensions_are_searchable_by_all(algorithm: AlgorithmSpec) -> None:
    space: Space = {"training.epochs": IntRange.model_validate_json('{"int": [3, 4]}')}
    assert not list(algorithm.check(space))
    values = proposals(algorithm, space, 0, 20, batch=1)
    assert {one["training.epochs"] for one in values} == {3, 4}, "both ends are included"
