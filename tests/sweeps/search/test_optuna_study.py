"""What Optuna hears of a trial: complete, failed, or pruned at an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from sweeps.search.base import Space
from sweeps.search.optuna_study import OptunaSearch


class Listener(RandomSampler):
    """Notes what a sampler hears when a trial ends."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.heard: dict[int, tuple[Any, ...]] = {}

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.heard[trial.number] = (state.name, values, trial.last_step)


def test_a_stopped_trial_is_pruned_after_its_epochs_with_its_value() -> None:
    dimensions: Space = TypeAdapter(Space).validate_json('{"a": {"uniform": [0, 1]}}')
    listener = Listener()
    search = OptunaSearch(listener, dimensions)
    for number in range(4):
        search.ask(number)
    search.tell(2, 0.9, 5)
    search.tell(0, 0.1)
    search.tell(3, None, 5)
    search.tell(1, 0.2, 10)
    assert listener.heard == {
        0: ("COMPLETE", [0.1], None),
        1: ("PRUNED", [0.2], 10),
        2: ("PRUNED", [0.9], 5),
        3: ("FAIL", None, None),
    }
