"""The Ray backend: dead workers, packs that fail, signals, resources."""

from __future__ import annotations

import contextlib
import logging
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
from sweeps.backends.ray import _check_resources, _slots
from sweeps.backends.tune import is_own_fault
from sweeps.config.interfaces import BACKENDS
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import prepare

pytestmark = pytest.mark.slow


def test_a_dead_worker_is_replaced_and_its_pack_trained_again(small_sweep: Callable[..., SweepSpec], local_ray: str):
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
    """A source with one pack that cannot be trained."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        self.packs = [Pack("invalid", runs, rule)]
        self.failures: list[tuple[str, str, bool]] = []

    def next_pack(self) -> Pack | None:
        return self.packs.pop() if self.packs else None

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        raise AssertionError("this pack cannot be completed")

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        self.failures.append((pack.name, why, own))
        raise LongtailError("failed too often")

    def exhausted(self) -> bool:
        return False


def test_the_source_is_notified_of_a_pack_that_crashes(small_sweep: Callable[..., SweepSpec], local_ray: str):
    ray_backend = BACKENDS.kinds()["ray"].model_validate({"kind": "ray"})
    source = OnePack(("no run",), EpochSelection())
    with pytest.raises(LongtailError, match="failed too often"):
        ray_backend.train(prepare(small_sweep()), source, cpus=1, gpus=0)
    ((name, why, own),) = source.failures
    assert name == "invalid"
    assert why.startswith("AttributeError: 'str' object has no attribute")
    assert own


def test_a_package_that_workers_lack_ends_the_sweep_at_once(
    small_sweep: Callable[..., SweepSpec], local_ray: str, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = types.ModuleType("only_the_driver_has_it")
    exec("class Run: pass", elsewhere.__dict__)
    monkeypatch.setitem(sys.modules, elsewhere.__name__, elsewhere)
    ray_backend = BACKENDS.kinds()["ray"].model_validate({"kind": "ray"})
    source = OnePack((elsewhere.Run(),), EpochSelection())
    with pytest.raises(UserError, match=r"a worker cannot import .*only_the_driver_has_it.*--ship-code"):
        ray_backend.train(prepare(small_sweep()), source, cpus=1, gpus=0)
    assert source.failures == []


def test_packs_too_large_for_a_local_ray_are_refused_and_a_cluster_may_grow(
    local_ray: str, caplog: pytest.LogCaptureFixture
):
    _check_resources(2, 0, local=True)
    with pytest.raises(UserError, match=r"resources\.cpus_per_pack must be at most 2, .*, got 99"):
        _check_resources(99, 0, local=True)
    with pytest.raises(UserError, match=r"resources\.gpus_per_pack must be at most 0, .*, got 0\.5"):
        _check_resources(1, 0.5, local=True)
    with caplog.at_level(logging.WARNING, "sweeps"):
        assert not caplog.messages
        _check_resources(99, 0, local=False)
    (message,) = caplog.messages
    assert "99 CPUs and 0 GPUs" in message
    assert "2 CPUs and 0 GPUs" in message
    assert "resources.cpus_per_pack" in message


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
def test_failures_are_attributed_to_the_pack_or_to_its_machine(error: Any, own: bool):
    """A pack that fails by its own fault is recorded as failed for good."""
    assert is_own_fault(error) is own


def test_slots_of_fractional_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 1.0})
    assert [_slots(1, gpus) for gpus in (0.1, 0.2, 0.3, 1, 0)] == [10, 5, 3, 1, 64]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_driver_needs_no_gpu_if_a_cluster_trains(
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
    """A source that receives SIGINT while it records the first result; its other pack takes minutes."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        super().__init__(runs, rule)
        self.recorded = False
        endless = Run(METHODS.parse({"kind": "ce"}), TrainingSpec(epochs=100_000), 0)
        self.packs.insert(0, Pack("endless", (endless,), rule))

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        signal.raise_signal(signal.SIGINT)
        self.recorded = True


def test_a_stop_completes_recording_and_does_not_wait_for_packs_in_flight(
    small_sweep: Callable[..., SweepSpec], local_ray: str
):
    bank = prepare(small_sweep())
    source = Stopped((Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(), 0),), EpochSelection())
    begin = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if pytest runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            BACKENDS.kinds()["ray"].model_validate({"kind": "ray"}).train(bank, source, cpus=1, gpus=0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert source.recorded, "the result must be recorded completely"
    assert time.monotonic() - begin < 60
    while any(in_a_pack(psutil.Process().children(recursive=True))):
        assert time.monotonic() - begin < 60, "the packs in flight must end"
        time.sleep(0.2)


class Full(OnePack):
    """A source that fails to record results; its other pack takes minutes."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        super().__init__(runs, rule)
        endless = Run(METHODS.parse({"kind": "ce"}), TrainingSpec(epochs=100_000), 0)
        self.packs.insert(0, Pack("endless", (endless,), rule))

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        raise LongtailError("the disk is full")


def test_an_error_of_the_source_does_not_wait_for_packs_in_flight(
    small_sweep: Callable[..., SweepSpec], local_ray: str
):
    source = Full((Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(), 0),), EpochSelection())
    begin = time.monotonic()
    with pytest.raises(LongtailError, match="the disk is full"):
        BACKENDS.kinds()["ray"].model_validate({"kind": "ray"}).train(prepare(small_sweep()), source, cpus=1, gpus=0)
    assert time.monotonic() - begin < 60
    while any(in_a_pack(psutil.Process().children(recursive=True))):
        assert time.monotonic() - begin < 60, "the packs in flight must end"
        time.sleep(0.2)


def test_results_are_released_once_they_are_recorded(
    small_sweep: Callable[..., SweepSpec], local_ray: str, monkeypatch: pytest.MonkeyPatch
):
    """Ray keeps every object with a reference, and the heads of a large model take 67 MB per run."""
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


def test_a_cluster_that_cannot_be_joined_is_a_user_error(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    file = tmp_path / "away.yaml"
    file.write_text(yaml.safe_dump(small_sweep(backend={"kind": "ray", "address": "nowhere"}).resolved()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "sweeps", "run", str(file)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == UserError.exit_code
    assert "cannot join the Ray cluster at nowhere: " in ran.stderr
    assert "Traceback" not in ran.stderr


class Locked(OnePack):
    """A source that cannot be pickled, like one with a thread or an open file."""

    def __init__(self, runs: tuple[Any, ...], rule: EpochSelection) -> None:
        super().__init__(runs, rule)
        self.lock = threading.Lock()
        self.done: list[RunResult] = []

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        with self.lock:
            self.done += results

    def exhausted(self) -> bool:
        return bool(self.done)


def test_tune_does_not_pickle_the_source(small_sweep: Callable[..., SweepSpec], local_ray: str):
    bank = prepare(small_sweep())
    source = Locked((Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(), 0),), EpochSelection())
    BACKENDS.kinds()["ray"].model_validate({"kind": "ray"}).train(bank, source, cpus=1, gpus=0)
    assert [result.failure for result in source.done] == [None]


OWN_RAY = """
import gc, sys
import ray
import sweeps

gc.disable()  # objects that are left would be collected at any time
shutdown = ray.shutdown

def counted(*arguments):
    kept = [type(one).__name__ for one in gc.get_objects()]
    managers, tuners = kept.count("PlacementGroupResourceManager"), kept.count("TunerInternal")
    print("managers:", managers, "tuners:", tuners, file=sys.__stderr__)
    shutdown(*arguments)

ray.shutdown = counted
sweeps.run(sweeps.load_sweep(sys.argv[1]))
"""


def test_no_object_of_tune_outlives_ray(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    """Ray ends a process silently if a finalizer calls it during its shutdown, as those of Tune do."""
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(small_sweep(search={"trials": 1}, backend={"kind": "ray"}).resolved()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY, str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "managers:" in line] == ["managers: 0 tuners: 0"]
