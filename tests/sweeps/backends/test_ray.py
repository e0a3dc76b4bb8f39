"""The Ray backend: workers that die, packs that cannot be trained."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from ray import exceptions, tune
from support.ledgers import runs_by_key
from support.workers import in_a_pack

import sweeps
from lt_train.core.errors import LongtailError, UserError
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Pack, Run, RunResult
from sweeps.backends.ray import _check_room, _slots
from sweeps.backends.tune import is_own_fault
from sweeps.config.backend import BACKENDS
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import prepare


def test_a_worker_that_dies_on_ray_is_replaced_and_its_pack_trained_again(
    small_sweep: Callable[..., SweepSpec], local_ray: str
):
    sections = {"training": {"epochs": 400}, "search": {"trials": 4}}
    expected = sweeps.run(small_sweep(name="plain", **sections))
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in in_a_pack(psutil.Process().children(recursive=True)):  # of the local Ray
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.append(process.pid)
                    break
            time.sleep(0.02)

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

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        self.packs = [Pack("hopeless", runs, rule)]
        self.failures: list[tuple[str, str, bool]] = []

    def next_pack(self) -> Pack | None:
        return self.packs.pop() if self.packs else None

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        raise AssertionError("this pack cannot be completed")

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        self.failures.append((pack.name, why, own))
        raise LongtailError("enough is enough")

    def exhausted(self) -> bool:
        return False


def test_of_a_pack_that_crashes_on_ray_the_source_hears_why_and_that_it_is_to_blame(
    small_sweep: Callable[..., SweepSpec], local_ray: str
):
    ray_backend = BACKENDS.kinds()["ray"].model_validate({"kind": "ray"})
    source = OnePack(("no run",), EpochSelection())
    with pytest.raises(LongtailError, match="enough is enough"):
        ray_backend.train(prepare(small_sweep()), source, cpus=1, gpus=0)
    ((name, why, own),) = source.failures
    assert name == "hopeless"
    assert why.startswith("AttributeError: 'str' object has no attribute")
    assert own


def test_workers_that_cannot_import_what_the_driver_can_end_the_sweep_at_once(
    small_sweep: Callable[..., SweepSpec], local_ray: str, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = types.ModuleType("only_the_driver_has_it")
    exec("class Run: pass", elsewhere.__dict__)
    monkeypatch.setitem(sys.modules, elsewhere.__name__, elsewhere)
    ray_backend = BACKENDS.kinds()["ray"].model_validate({"kind": "ray"})
    source = OnePack((elsewhere.Run(),), EpochSelection())
    with pytest.raises(UserError, match=r"a worker could not be started: .*only_the_driver_has_it.*every node needs"):
        ray_backend.train(prepare(small_sweep()), source, cpus=1, gpus=0)
    assert source.failures == []


def test_a_local_ray_is_not_asked_for_more_than_it_has(local_ray: str, capsys: pytest.CaptureFixture[str]):
    _check_room(2, 0, local=True)
    with pytest.raises(UserError, match=r"resources\.cpus_per_pack must be at most the 2 CPUs.*, got 99"):
        _check_room(99, 0, local=True)
    with pytest.raises(UserError, match=r"resources\.gpus_per_pack must be at most the 0 GPUs.*, got 0\.5"):
        _check_room(1, 0.5, local=True)
    assert capsys.readouterr().err == ""
    _check_room(99, 0, local=False)  # a cluster may grow, and nobody is left to wonder
    assert "no node of the cluster has the 99 CPUs and 0 GPUs of a pack, they have 2 and 0; waiting" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (exceptions.OutOfMemoryError("the monitor killed it"), True),
        (exceptions.WorkerCrashedError(), True),
        (exceptions.RayTaskError("step", "traceback", ValueError("NaN")).as_instanceof_cause(), True),
        (MemoryError(), True),
        (exceptions.RayTaskError("step", "traceback", OSError(28, "no space")).as_instanceof_cause(), False),
        (exceptions.RayTaskError("step", "t", exceptions.ObjectStoreFullError("full")).as_instanceof_cause(), False),
        (exceptions.RuntimeEnvSetupError("the disk is full"), False),
        (exceptions.OutOfDiskError(), False),
        (exceptions.LocalRayletDiedError(), False),
        (exceptions.ActorUnavailableError("gone", None), False),
        (exceptions.ActorPlacementGroupRemoved(), False),
        (exceptions.ActorUnschedulableError("no such node"), False),
        (None, False),
    ],
)
def test_a_machines_trouble_is_not_blamed_on_a_pack(error: Any, own: bool):
    """A run to blame is recorded as failed for good."""
    assert is_own_fault(error) is own


def test_a_tenth_of_a_device_is_ten_to_a_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 1.0})
    assert [_slots(1, gpus) for gpus in (0.1, 0.2, 0.3, 1, 0)] == [10, 5, 3, 1, 64]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test is about lacking")
def test_a_driver_needs_no_device_where_packs_are_trained_elsewhere(
    small_sweep: Callable[..., SweepSpec], monkeypatch: pytest.MonkeyPatch
):
    on_gpus = {"resources": {"gpus_per_pack": 1}}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="this machine has no CUDA device"):
        prepare(small_sweep(backend={"kind": "ray"}, **on_gpus))
    assert prepare(small_sweep(backend={"kind": "ray", "address": "auto"}, **on_gpus)).num_classes == 6
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert prepare(small_sweep(backend={"kind": "ray"}, **on_gpus)).num_classes == 6


class Stopped(OnePack):
    """A source in which a stop arrives while the first result is being recorded; another pack takes minutes."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        super().__init__(runs, rule)
        self.recorded = False
        endless = Run(METHODS.parse({"kind": "ce"}), TrainingSpec(epochs=100_000), 0)
        self.packs.insert(0, Pack("endless", (endless,), rule))

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        signal.raise_signal(signal.SIGINT)
        self.recorded = True


def test_a_stop_while_a_result_is_recorded_does_not_wait_for_packs_in_flight(
    small_sweep: Callable[..., SweepSpec], local_ray: str
):
    bank = prepare(small_sweep())
    source = Stopped((Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(), 0),), EpochSelection())
    begin = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where pytest runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            BACKENDS.kinds()["ray"].model_validate({"kind": "ray"}).train(bank, source, cpus=1, gpus=0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert source.recorded, "what was under way was done first"
    assert time.monotonic() - begin < 60
    while any(in_a_pack(psutil.Process().children(recursive=True))):
        assert time.monotonic() - begin < 60, "and nothing goes on with them"
        time.sleep(0.2)


class Full(OnePack):
    """A source that cannot record anything; another pack takes minutes."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        super().__init__(runs, rule)
        endless = Run(METHODS.parse({"kind": "ce"}), TrainingSpec(epochs=100_000), 0)
        self.packs.insert(0, Pack("endless", (endless,), rule))

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        raise LongtailError("the disk is full")


def test_a_driver_that_cannot_go_on_does_not_wait_for_packs_in_flight(
    small_sweep: Callable[..., SweepSpec], local_ray: str
):
    source = Full((Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(), 0),), EpochSelection())
    begin = time.monotonic()
    with pytest.raises(LongtailError, match="the disk is full"):
        BACKENDS.kinds()["ray"].model_validate({"kind": "ray"}).train(prepare(small_sweep()), source, cpus=1, gpus=0)
    assert time.monotonic() - begin < 60
    while any(in_a_pack(psutil.Process().children(recursive=True))):
        assert time.monotonic() - begin < 60, "and nothing goes on with them"
        time.sleep(0.2)


def test_no_results_are_held_after_they_are_recorded(
    small_sweep: Callable[..., SweepSpec], local_ray: str, monkeypatch: pytest.MonkeyPatch
):
    """Ray keeps what anybody refers to, and heads of a large model are 67 MB a run."""
    grids = []

    class Kept(tune.Tuner):
        def fit(self) -> Any:
            grids.append(super().fit())
            return grids[-1]

    monkeypatch.setattr(tune, "Tuner", Kept)
    sweeps.run(small_sweep(backend={"kind": "ray"}))
    (grid,) = grids
    assert len(grid) > 1
    assert [result.metrics["outcome"] for result in grid] == [[]] * len(grid)


def test_a_cluster_that_cannot_be_joined_is_told_in_a_sentence(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    file = tmp_path / "away.yaml"
    file.write_text(yaml.safe_dump(small_sweep(backend={"kind": "ray", "address": "nowhere"}).resolved()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "sweeps.cli.main", "run", str(file)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == UserError.exit_code
    assert "the Ray cluster at nowhere cannot be joined: " in ran.stderr
    assert "Traceback" not in ran.stderr


class Locked(OnePack):
    """A source that cannot be copied, as one with a thread or an open file behind it."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        super().__init__(runs, rule)
        self.lock = threading.Lock()
        self.done: list[RunResult] = []

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        with self.lock:
            self.done += results

    def exhausted(self) -> bool:
        return bool(self.done)


def test_a_source_stays_in_its_process_when_tune_writes_its_settings_down(
    small_sweep: Callable[..., SweepSpec], local_ray: str
):
    bank = prepare(small_sweep())
    source = Locked((Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(), 0),), EpochSelection())
    BACKENDS.kinds()["ray"].model_validate({"kind": "ray"}).train(bank, source, cpus=1, gpus=0)
    assert [result.failure for result in source.done] == [None]


OWN_RAY = """
import gc, sys
import ray
import sweeps

gc.disable()  # whatever is left would be collected at any later moment
shutdown = ray.shutdown

def counted(*arguments):
    kept = [type(one).__name__ for one in gc.get_objects()]
    managers, tuners = kept.count("PlacementGroupResourceManager"), kept.count("TunerInternal")
    print("managers:", managers, "tuners:", tuners, file=sys.__stderr__)
    shutdown(*arguments)

ray.shutdown = counted
sweeps.run(sweeps.load(sys.argv[1]))
"""


def test_nothing_of_tune_outlives_its_ray(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    """Ray ends a process without a word in which something asks it for anything during its shutdown, as Tune's does."""
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(small_sweep(search={"trials": 1}, backend={"kind": "ray"}).resolved()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY, str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "managers:" in line] == ["managers: 0 tuners: 0"]
