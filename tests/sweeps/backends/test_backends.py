"""One suite for all backends: they train the same packs and give bit-identical results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from support.ledgers import runs_by_key

import sweeps
from lt_train.core.errors import BankError
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Pack, Run, RunResult
from sweeps.config.interfaces import BACKENDS
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import prepare

pytestmark = pytest.mark.slow

WHOLE = {"resources": {"lanes_per_pack": 2}}
HALVED = {
    "search": {"trials": 14, "proposal_batch": 8, "early_stopping": {"kind": "successive_halving", "rungs": [1, 2]}},
    "resources": {"lanes_per_pack": 8},
}


@pytest.mark.parametrize("sections", [WHOLE, HALVED], ids=["whole", "halved"])
@pytest.mark.parametrize("kind", sorted(BACKENDS.kinds()))
def test_all_backends_give_the_same_results(
    kind: str, sections: dict[str, Any], small_sweep: Callable[..., SweepSpec], request: pytest.FixtureRequest
):
    if kind == "ray":
        request.getfixturevalue("local_ray")
    sections = sections | {"selection": {"seeds": 2, "finalists": 2, "extended_training": 2}}
    plain = small_sweep(name="plain", **sections)
    spec = small_sweep(name=f"on-{kind}", backend={"kind": kind}, **sections)
    expected, found = sweeps.run(plain), sweeps.run(spec)
    assert (found.runs.stopped > 0) is (sections["resources"] == HALVED["resources"])
    assert runs_by_key(spec) == runs_by_key(plain)
    assert found.winner == expected.winner
    assert found.extended == expected.extended
    assert found.extended is not None
    assert found.trials == expected.trials
    assert found.runs == expected.runs


class OnePack:
    """A source with one pack that cannot be trained."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        self.packs = [Pack("invalid", runs, rule)]

    def next_pack(self) -> Pack | None:
        return self.packs.pop() if self.packs else None

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        raise AssertionError("this pack cannot be completed")

    def exhausted(self) -> bool:
        return False


@pytest.mark.parametrize("kind", sorted(BACKENDS.kinds()))
def test_user_errors_are_raised_unchanged(
    kind: str, small_sweep: Callable[..., SweepSpec], request: pytest.FixtureRequest
):
    if kind == "ray":
        request.getfixturevalue("local_ray")
    bank = dataclasses.replace(prepare(small_sweep()), val=None)
    source = OnePack((Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(), 0),), EpochSelection("best", "val"))
    with pytest.raises(BankError, match="needs a validation set"):
        BACKENDS.kinds()[kind].model_validate({"kind": kind}).train(bank, source, cpus=1, gpus=0)
