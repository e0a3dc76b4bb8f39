"""Search spaces and early stopping: what is accepted, and what each means."""

import pytest
from pydantic import TypeAdapter, ValidationError

from lt_train.core.errors import SpecError
from lt_train.methods.base import TrainingSpec
from lt_train.retrain.base import Halving
from sweeps.search.base import EARLY_STOPPING, EarlyStoppingSpec, NoEarlyStopping, Space, SuccessiveHalving


def space(text: str) -> Space:
    result: Space = TypeAdapter(Space).validate_json(text)
    return result


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
def test_invalid_dimensions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space(f'{{"method.lr": {text}}}')


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"uniform": [2, 4]}', [2.0, 3.0, 4.0]),
        ('{"loguniform": [0.01, 1]}', [0.01, 0.1, 1.0]),
        ('{"int": [1, 3]}', [1, 2, 3]),
        ('{"choice": ["a", "b", "c"]}', ["a", "b", "c"]),
    ],
)
def test_a_share_of_a_range_is_a_value(text: str, values: list[object]) -> None:
    dimension = space(f'{{"method.lr": {text}}}')["method.lr"]
    found = [dimension.at(share) for share in (0.0, 0.5, 1 - 1e-12)]
    assert found == [pytest.approx(value) for value in values] if isinstance(values[0], float) else found == values


@pytest.mark.parametrize("epochs", [1, 20])
def test_none_stops_and_refuses_nothing(epochs: int) -> None:
    training = TrainingSpec(epochs=epochs)
    assert NoEarlyStopping().halving(training) is None
    assert list(NoEarlyStopping().check(training)) == []


def written(**fields: object) -> EarlyStoppingSpec:
    """Successive halving, as a file would write it."""
    kind = {"kind": "successive_halving", **fields}
    return EARLY_STOPPING.parse(kind)  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(30, (2, 6, 18)), (18, (2, 6)), (7, (2, 6)), (3, (2,)), (2, None), (1, None)]
)
def test_only_rungs_below_the_last_epoch_stop_anything(epochs: int, rungs: tuple[int, ...] | None) -> None:
    rule = written(rungs=[2, 6, 18], factor=3)
    training = TrainingSpec(epochs=epochs)
    assert rule.halving(training) == (None if rungs is None else Halving(rungs, 3.0))
    problems = list(rule.check(training))
    assert [field for field, _ in problems] == ([] if rungs else ["rungs"])


def test_the_default_halves_twenty_epochs_twice() -> None:
    assert SuccessiveHalving().halving(TrainingSpec()) == Halving((5, 10), 2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rungs": [5, 5]}, r"rungs: .*ascending order, got \[5, 5\]"),
        ({"rungs": [10, 5]}, r"rungs: .*ascending order, got \[10, 5\]"),
        ({"rungs": [0, 5]}, r"rungs\[0\]: must be at least 1, got 0"),
        ({"rungs": [2.5]}, r"rungs\[0\]: must be a whole number, got 2\.5"),
        ({"rungs": []}, r"rungs: must have at least 1 entry, got \[\]"),
        ({"rungs": 5}, r"rungs: must be a list, got 5"),
        ({"factor": 1}, r"factor: must be above 1, got 1"),
        ({"factor": 0.5}, r"factor: must be above 1, got 0\.5"),
    ],
)
def test_invalid_rungs_and_factors_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        written(**fields)
