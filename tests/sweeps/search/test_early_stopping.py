"""Early stopping: which rungs have an effect for runs of which length, and which rungs are refused."""

from __future__ import annotations

import pytest

from lt_train.core.errors import SpecError
from lt_train.methods.base import TrainingSpec
from lt_train.retrain.base import Halving
from sweeps.search.base import EARLY_STOPPING, EarlyStoppingSpec, NoEarlyStopping, SuccessiveHalving


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
