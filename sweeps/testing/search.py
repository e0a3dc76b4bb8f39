"""`check_algorithm` and `check_early_stopping`: which trials a search tries, and which of them it stops."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter

from lt_train.methods.base import TrainingSpec
from lt_train.retrain.base import Halving
from lt_train.testing import check_kind
from sweeps.search.base import AlgorithmSpec, Choice, Dimension, EarlyStoppingSpec, Range, Space, Tried

__all__ = ["SPACES", "check_algorithm", "check_early_stopping", "proposals"]

SPACES = (
    """{
      "method.smooth_factor": {"uniform": [0.2, 0.98]},
      "method.lr": {"loguniform": [1e-5, 0.1]},
      "training.epochs": {"int": [1, 20]},
      "method.init": {"choice": ["checkpoint", "random"]},
      "method.head.squash": {"choice": [true, false]},
      "method.prior": {"choice": [1.5, null]}
    }""",
    """{
      "training.epochs": {"int": [1, 5]},
      "training.batch_size": {"choice": [64, 32, 16]},
      "a.b": {"choice": [true, 1.5, null]}
    }""",
    """{"method.lr": {"loguniform": [1e-3, 0.1]}, "method.scale": {"uniform": [1.0, 64.0]}}""",
)
"""Every type of dimension; those with finitely many values; those with bounds that are not whole numbers."""


def check_algorithm(algorithm: AlgorithmSpec | type[AlgorithmSpec]) -> None:
    """Check a search algorithm, on spaces with all types of dimensions that it can search.

    - `lt_train.testing.check_kind`.
    - Proposed values lie in their dimensions, which are all given, and have types that JSON holds exactly.
    - The same arguments give the same values again, whatever was proposed in between, and are not changed.
    - A smaller number of trials gives the first of a larger number: a sweep that is extended from 24 to 60 trials tries
      the same first 24.
    - A search goes on if all trials fail, are stopped or are still running, and ends after `size` trials.

    Args:
        algorithm: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(algorithm, AlgorithmSpec)
    name = type(checked).__name__
    spaces = [TypeAdapter(Space).validate_json(text) for text in SPACES]
    searched = [space for space in spaces if not list(checked.check(space))]
    assert searched, f"{name}.check refuses all spaces; it must accept those with {{choice: ...}}, or with two bounds"
    for space in searched:
        for state in ("running", "stopped", "failed"):
            _check_without_results(checked, space, state)
        _check_values(checked, space)
        _check_dependence(checked, space)
        _check_extension(checked, space)


def proposals(
    algorithm: AlgorithmSpec, space: Mapping[str, Dimension], seed: int, trials: int, batch: int
) -> list[dict[str, Any]]:
    """The values of a search with made-up results: failed, stopped, tied and different ones, by number of the trial.

    Args:
        algorithm: proposes the trials.
        space: the searched dimensions.
        seed: of the search.
        trials: number of trials; fewer are proposed if the search is exhausted.
        batch: number of trials that are proposed at once, while those of the batch before are still running.
    """
    proposed: list[dict[str, Any]] = []
    for start in range(0, trials, batch):
        tried = [
            _ended(params, number) if number < start - batch else Tried(params, "running")
            for number, params in enumerate(proposed)
        ]
        proposed += algorithm.propose(space, seed, tried, min(batch, trials - start))
    return proposed


def _ended(params: dict[str, Any], number: int) -> Tried:
    if number % 7 == 3:
        return Tried(params, "failed")
    value = [0.5, 0.5, 0.25, 0.75, 0.5][number % 5]
    if number % 3 == 0:
        return Tried(params, "stopped", value, 5 * (1 + number % 2))
    return Tried(params, "finished", value)


def _check_values(algorithm: AlgorithmSpec, space: Space) -> None:
    name, size = type(algorithm).__name__, algorithm.size(space)
    found = proposals(algorithm, space, 0, 30, batch=5)
    expected = 30 if size is None else min(size, 30)
    assert len(found) == expected, f"{name} proposed {len(found)} of 30 trials, but its size is {size}"
    for values in found:
        given = f"{name} proposed {values}"
        assert set(values) == set(space), f"{given}; a trial must have a value for each of {', '.join(space)}"
        for path, value in values.items():
            assert type(value) in (bool, int, float, str, type(None)), (
                f"{given}; {path} must be a plain bool, int, float, str or None, got {type(value).__name__}"
            )
            assert json.loads(json.dumps(value)) == value, f"{given}; JSON does not hold {path} exactly"
            dimension = space[path]
            if isinstance(dimension, Range):
                assert type(value) is dimension.number, f"{given}; {path} must be of type {dimension.number.__name__}"
                number: Any = value
                inside = dimension.low <= number <= dimension.high
            else:
                assert isinstance(dimension, Choice)
                inside = any(value == one and type(value) is type(one) for one in dimension.values)
            assert inside, f"{given}; {path} must be in {dimension.model_dump(mode='json')}"


def _check_dependence(algorithm: AlgorithmSpec, space: Space) -> None:
    name = type(algorithm).__name__
    tried = _history(algorithm, space)
    before = copy.deepcopy((space, tried))
    first = algorithm.propose(space, 1, tried, 4)
    algorithm.propose(space, 2, tried[:11], 3)
    algorithm.propose(space, 1, [Tried(one.params, "finished", 0.1) for one in tried], 4)
    assert (space, tried) == before, f"{name}.propose must not change its arguments"
    message = f"{name}.propose must depend on its arguments only, but gives other values"
    assert algorithm.propose(space, 1, tried, 4) == first, f"{message} when it is called again"
    other = type(algorithm).model_validate_json(algorithm.model_dump_json())
    assert other.propose(space, 1, copy.deepcopy(tried), 4) == first, f"{message} for another instance"


def _check_extension(algorithm: AlgorithmSpec, space: Space) -> None:
    name = type(algorithm).__name__
    for tried in ([], _history(algorithm, space)):
        eight = algorithm.propose(space, 1, tried, 8)
        for count in (0, 1, 5):
            assert algorithm.propose(space, 1, tried, count) == eight[:count], (
                f"{name}.propose with count {count} must give the first of the trials with count 8, after {len(tried)}"
            )
    longer = proposals(algorithm, space, 3, 60, batch=10)
    assert proposals(algorithm, space, 3, 24, batch=10) == longer[:24], (
        f"{name}: a search with 24 trials must try the first 24 of a search with 60"
    )


def _check_without_results(
    algorithm: AlgorithmSpec, space: Space, state: Literal["running", "stopped", "failed"]
) -> None:
    name, size = type(algorithm).__name__, algorithm.size(space)
    tried: list[Tried] = []
    for number in range(15 if size is None else min(size, 15)):
        try:
            proposed = algorithm.propose(space, 0, tried, 1)
        except Exception as error:
            problem = f"{name}.propose fails if all {number} trials are {state}: {type(error).__name__}: {error}"
            raise AssertionError(problem) from error
        assert len(proposed) == 1, f"{name}.propose gave {len(proposed)} trials instead of 1, after {number}"
        params = proposed[0]
        tried.append(Tried(params, state, 0.5, 5) if state == "stopped" else Tried(params, state))


def _history(algorithm: AlgorithmSpec, space: Space) -> list[Tried]:
    """Up to 16 trials that ended and 4 that are running."""
    proposed = proposals(algorithm, space, 1, 20, batch=4)
    return [_ended(params, n) if n < 16 else Tried(params, "running") for n, params in enumerate(proposed)]


def check_early_stopping(rule: EarlyStoppingSpec | type[EarlyStoppingSpec]) -> None:
    """Check an early stopping rule: for every length of training it returns None, or rungs before the last epoch.

    Args:
        rule: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(rule, EarlyStoppingSpec)
    name = type(checked).__name__
    for epochs in (1, 2, 5, 20, 200):
        training = TrainingSpec(epochs=epochs)
        halving = checked.halving(training)
        assert checked.halving(training) == halving, f"{name}.halving must give the same rule again"
        _check_halving(name, halving, epochs)
        problems: Sequence[tuple[str, str]] = list(checked.check(training))
        for field, _ in problems:
            assert field in type(checked).model_fields, f"{name}.check names the field {field!r}, which it has not"
        assert halving is None or not problems, f"{name} has a rule for {epochs} epochs and problems: {problems}"


def _check_halving(name: str, halving: Halving | None, epochs: int) -> None:
    assert halving is None or isinstance(halving, Halving), f"{name}.halving must return Halving or None"
    if halving is not None:
        assert halving.rungs, f"{name}.halving must return None instead of a rule without rungs"
        assert max(halving.rungs) < epochs, f"{name}: rungs must be before the last epoch {epochs}, got {halving.rungs}"
