"""One suite over every backend of the registry: the same packs, the same numbers, to the last bit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sweeps
from lt_train.errors import BankError, LongtailError
from lt_train.methods.base import TrainingSpec, parse_method
from lt_train.retrain import fused
from lt_train.retrain.base import EpochRule, Pack, Run, RunResult
from sweeps.backends.base import backend_kinds
from sweeps.prepare import prepare
from sweeps.spec import SweepSpec


def runs_by_key(spec: SweepSpec) -> dict[str, dict]:
    lines = (Path(spec.storage) / spec.name / "ledger.jsonl").read_text().splitlines()
    return {run["key"]: run for line in lines for run in json.loads(line)["runs"]}


@pytest.mark.parametrize("kind", sorted(backend_kinds()))
def test_every_backend_gives_what_a_plain_loop_gives(
    kind: str, small_sweep: Callable[..., SweepSpec], request: pytest.FixtureRequest
):
    if kind == "ray":
        request.getfixturevalue("local_ray")
    finalists = {"seeds": 2, "finalists": 2}
    plain = small_sweep(name="plain", selection=finalists, resources={"lanes_per_pack": 2})
    spec = small_sweep(name=f"on-{kind}", selection=finalists, resources={"lanes_per_pack": 2}, backend={"kind": kind})
    expected, found = sweeps.run(plain), sweeps.run(spec)
    assert runs_by_key(spec) == runs_by_key(plain)
    assert found.winner == expected.winner
    assert found.trials == expected.trials
    assert found.runs == expected.runs


def test_a_pack_that_raises_in_this_process_ends_the_sweep_with_its_error(
    small_sweep: Callable[..., SweepSpec], monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def broken(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 2:
            raise RuntimeError("out of luck")
        return fit(*arguments, **options)

    fit = fused.fit
    spec = small_sweep()
    monkeypatch.setattr(fused, "fit", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        sweeps.run(spec)
    finished = runs_by_key(spec)
    monkeypatch.undo()
    assert sweeps.run(spec).runs.cached == len(finished) > 0


def workers() -> list[int]:
    """Process ids of Ray workers that hold our trainable."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::PackTrainable" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def test_a_worker_that_dies_on_ray_is_replaced_and_its_pack_trained_again(
    small_sweep: Callable[..., SweepSpec], local_ray: None
):
    sections = {"training": {"epochs": 400}, "search": {"trials": 4}}
    expected = sweeps.run(small_sweep(name="plain", **sections))
    killed: list[int] = []

    def kill_one() -> None:
        for _ in range(600):
            for process in workers():
                time.sleep(0.3)  # let it get into a pack
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    spec = small_sweep(name="mortal", backend={"kind": "ray"}, **sections)
    result = sweeps.run(spec)
    killer.join()
    assert killed, "the test must have killed a worker"
    assert result.winner == expected.winner
    assert result.runs == expected.runs
    assert runs_by_key(spec) == runs_by_key(small_sweep(name="plain"))


class OnePack:
    """A source of one pack that cannot be trained."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochRule) -> None:
        self.packs = [Pack("hopeless", runs, rule)]

    def next_pack(self) -> Pack | None:
        return self.packs.pop() if self.packs else None

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        raise AssertionError("this pack cannot be completed")

    def exhausted(self) -> bool:
        return False


def test_a_pack_that_always_crashes_on_ray_is_reported_by_name_and_cause(
    small_sweep: Callable[..., SweepSpec], local_ray: None
):
    ray_backend = backend_kinds()["ray"].model_validate({"kind": "ray"})
    with pytest.raises(LongtailError, match=r"pack hopeless failed 3 times on Ray: AttributeError.*`lt-sweep resume`"):
        ray_backend.train(prepare(small_sweep()), OnePack(("no run",), EpochRule()), cpus=1, gpus=0)


@pytest.mark.parametrize("kind", sorted(backend_kinds()))
def test_what_the_user_has_to_mend_is_raised_as_it_is(
    kind: str, small_sweep: Callable[..., SweepSpec], request: pytest.FixtureRequest
):
    if kind == "ray":
        request.getfixturevalue("local_ray")
    bank = dataclasses.replace(prepare(small_sweep()), val=None)
    source = OnePack((Run(parse_method({"kind": "vanilla"}), TrainingSpec(), 0),), EpochRule("best", "val"))
    with pytest.raises(BankError, match="needs a validation set"):
        backend_kinds()[kind].model_validate({"kind": kind}).train(bank, source, cpus=1, gpus=0)
