"""Tracking in Weights & Biases: offline files, a resume, crashes, the processes, and a server that stands for W&B's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import wandb
import yaml
from support.wandb_files import WandbRun, wandb_runs
from support.wandb_server import WandbServer, wandb_server

import sweeps
from lt_train.core.errors import UserError
from lt_train.features.files import open_test
from sweeps.config.interfaces import TRACKERS, TrackedSweep
from sweeps.config.spec import SweepSpec
from sweeps.experiment.events import Event, TrialFinished
from sweeps.experiment.listeners import TrackingBehind
from sweeps.tracking.wandb import WandbTracking

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("wandb_home")]

MakeSweep = Callable[..., SweepSpec]
OFFLINE = {"kind": "wandb", "mode": "offline"}
ONLINE = {"kind": "wandb", "mode": "online", "flush_timeout": 0.0}
ALL = {"sweep", "baseline-vanilla", "baseline-ce", *(f"search-{number:04d}" for number in range(7))}


@pytest.fixture
def server(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setattr("sweeps.tracking.wandb.tracker.TIMEOUT", 3.0)
        yield found
        wandb.teardown()


def by_key(spec: SweepSpec) -> dict[str, WandbRun]:
    """The runs in the files of a sweep, which wandb's process writes in the background until it is stopped."""
    wandb.teardown()
    runs = wandb_runs(Path(spec.storage))
    found = {run.key: run for run in runs}
    assert len(found) == len(runs), "a run was written twice"
    return found


def directory(spec: SweepSpec) -> Path:
    return Path(spec.storage) / spec.name


def stop_once_written(spec: SweepSpec, runs: int) -> Callable[[Event], None]:
    """A callback that stops the sweep as soon as so many runs of trials are written."""

    def stop(event: Event) -> None:
        deadline = time.monotonic() + 30
        while isinstance(event, TrialFinished) and event.runs.trial.name == "search-0001":
            assert time.monotonic() < deadline
            time.sleep(0.05)
            if len(complete(spec)) >= runs:
                raise KeyboardInterrupt

    return stop


def complete(spec: SweepSpec) -> list[Path]:
    return list(Path(spec.storage).glob("wandb/*run-*/longtail-sweeps.json"))


def test_an_offline_sweep_is_complete_in_its_files(
    small_sweep: MakeSweep, wandb_home: Path, capfd: pytest.CaptureFixture[str]
):
    spec = small_sweep(tracking=OFFLINE)
    result = sweeps.run(spec)
    runs = by_key(spec)
    assert set(runs) == ALL
    assert {run.exit_code for run in runs.values()} == {0}
    assert {(run.info.project, run.info.run_group) for run in runs.values()} == {
        ("longtail-sweeps", f"small-{runs['sweep'].info.run_group[-8:]}")
    }
    trial = runs["search-0003"]
    assert (trial.info.job_type, trial.info.display_name[:8]) == ("search", "los d=0.")
    assert trial.config["smooth_factor"] == result.trials[3].params["method.smooth_factor"]
    assert "log10_lr" not in trial.config, "W&B's charts have logarithmic axes"
    assert "a trial of the search" in trial.info.notes
    seeds = result.trials[3].seeds
    assert [trial.history[seed.seed]["seed_acc_all"] for seed in seeds] == pytest.approx([s.acc_all for s in seeds])
    curve = [row["epoch_acc_all"] for _, row in sorted(trial.history.items()) if "epoch_acc_all" in row]
    assert len(curve) == 3
    assert trial.summary["acc_all"] == pytest.approx(curve[-1])
    assert not {"seed_acc_all", "epoch_acc_all"} & set(trial.summary), "a last point is not a result"
    table = json.loads((trial.directory / "files" / trial.summary["per_class.path"]).read_text())
    assert table["columns"] == ["class", "accuracy", "loma", "regularised_std"]
    assert [row[0] for row in table["data"]] == list(range(6))
    assert all(0 <= row[1] <= 1 and row[2] > 0 for row in table["data"])
    parent = runs["sweep"]
    assert parent.summary["acc_all"] == pytest.approx(result.winner.mean.acc_all.value)
    assert set(parent.artifacts) == {"small-champion", "small-result"}
    assert {"result.json", "per_class.csv", "spec.yaml"} <= set(parent.artifacts["small-result"])
    assert {"environment", "output", "output_raw", "stats"}.isdisjoint(
        kind for run in runs.values() for kind in run.kinds
    )
    assert not parent.info.HasField("git")
    assert not any(run.info.host for run in runs.values())
    assert capfd.readouterr().out == ""
    assert not list(Path.cwd().iterdir())
    assert not list(wandb_home.rglob("*wandb*"))
    assert {path.name for path in Path(spec.storage).iterdir()} == {"cache", "small", "wandb"}


def test_the_champion_is_a_graph_of_the_winner(image_classifier: MakeSweep):
    spec = image_classifier(tracking=OFFLINE)
    result = sweeps.run(spec)
    files = by_key(spec)["sweep"].artifacts["small-champion"]
    assert set(files) == {"head.pt2", "images.pt2"}
    for file in files.values():
        with zipfile.ZipFile(file) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
        assert b".py" not in content, f"{file.name} has paths of this machine"
    test = spec.dataset.load().test
    images = torch.export.load(str(files["images.pt2"])).module()(test.inputs.permute(0, 2, 3, 1))
    assert (images.argmax(1) == test.labels).double().mean() == pytest.approx(result.winner.best_of.acc_all, abs=1e-6)
    (bank,) = (Path(spec.storage) / "cache" / "banks").iterdir()
    features = open_test(bank).features[0]
    head = torch.export.load(str(files["head.pt2"])).module()(features.float())
    np.testing.assert_allclose(head.detach(), images.detach(), rtol=1e-4, atol=1e-4)


def test_an_interrupted_and_resumed_sweep_has_each_trial_once(small_sweep: MakeSweep):
    spec = small_sweep(tracking=OFFLINE)
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(spec, callbacks=[stop_once_written(spec, 2)])
    before = by_key(spec)
    assert 3 <= len(before) < len(ALL)
    assert before["sweep"].exit_code == 1
    assert "preempting" in before["sweep"].kinds
    sweeps.resume(directory(spec))
    after = by_key(spec)
    assert set(after) == ALL
    assert {run.exit_code for run in after.values()} == {0}
    kept = {key for key in before if key != "sweep"}
    assert {key: after[key].directory for key in kept} == {key: before[key].directory for key in kept}
    assert before["sweep"].info.run_id == after["sweep"].info.run_id


def test_what_a_crash_left_is_written_again(small_sweep: MakeSweep):
    spec = small_sweep(tracking=OFFLINE)
    sweeps.run(spec)
    before = by_key(spec)
    for key in ("search-0001", "sweep"):
        (before[key].directory / "longtail-sweeps.json").unlink()
    file = next(before["search-0001"].directory.glob("*.wandb"))
    file.write_bytes(file.read_bytes()[:600])
    sweeps.resume(directory(spec))
    after = by_key(spec)
    assert set(after) == ALL
    assert after["search-0001"].exit_code == 0
    written = {key for key in ALL if after[key].directory != before[key].directory}
    assert written == {"search-0001", "sweep"}
    assert after["search-0001"].info.run_id == before["search-0001"].info.run_id
    champions = [run["sweep"].artifacts["small-champion"]["head.pt2"].read_bytes() for run in (before, after)]
    assert champions[0] == champions[1], "W&B would store another version"


def test_a_failed_trial_is_shown_as_failed(small_sweep: MakeSweep):
    search = {"algorithm": "grid", "trials": 2, "space": {"method.lr": {"choice": [1e-2, 1e38]}}}
    spec = small_sweep(tracking=OFFLINE, search=search, baselines=[])
    sweeps.run(spec)
    assert {key: run.exit_code for key, run in by_key(spec).items()} == {
        "sweep": 0, "search-0000": 0, "search-0001": 1,
    }  # fmt: skip


def test_seed_runs_name_their_trial(small_sweep: MakeSweep):
    spec = small_sweep(tracking=OFFLINE | {"seed_runs": True}, search={"trials": 2}, baselines=[])
    result = sweeps.run(spec)
    runs = by_key(spec)
    assert len(runs) == 1 + 2 + 4
    seed = runs["search-0001/1"]
    assert (seed.info.job_type, seed.config["trial"], seed.config["seed"]) == ("seed", "search-0001", 1)
    assert seed.summary["acc_all"] == pytest.approx(result.trials[1].seeds[1].acc_all)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_driver_is_stopped(number: signal.Signals, small_sweep: MakeSweep, tmp_path: Path):
    spec = small_sweep(tracking=OFFLINE, search={"trials": 400}, training={"epochs": 100})
    file, log = tmp_path / "sweep.yaml", tmp_path / "log"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "sweeps", "run", str(file)]
        driver = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(complete(spec)) < 2:
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (service,) = [child for child in psutil.Process(driver.pid).children() if child.name() == "wandb-core"]
    os.killpg(driver.pid, number)
    assert driver.wait(timeout=60) == (130 if number == signal.SIGINT else -number)
    psutil.wait_procs([service], timeout=30)
    assert not service.is_running()


def test_the_environment_is_obeyed(small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"MODE": "offline", "PROJECT": "mine", "ENTITY": "us", "SWEEP_ID": "another"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    spec = small_sweep(tracking={"kind": "wandb"}, search={"trials": 2}, baselines=[])
    sweeps.run(spec)
    runs = by_key(spec)
    assert {(run.info.entity, run.info.project, run.info.sweep_id) for run in runs.values()} == {("us", "mine", "")}
    assert len(runs) == 3, "a W&B sweep would give all of them one id"


@pytest.mark.parametrize(("mode", "problem"), [("disabled", None), ("shared", "WANDB_MODE must be .* got shared")])
def test_other_modes(mode: str, problem: str | None, small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    spec = small_sweep(tracking={"kind": "wandb", "flush_timeout": 0.0}, search={"trials": 2}, baselines=[])
    if problem is None:
        sweeps.run(spec)
    else:
        with pytest.raises(TrackingBehind, match=problem):
            sweeps.run(spec)
    assert (directory(spec) / "result.json").exists()
    assert not wandb_runs(Path(spec.storage))


def test_an_online_sweep_is_uploaded_once(small_sweep: MakeSweep, server: WandbServer):
    spec = small_sweep(tracking=ONLINE | {"flush_timeout": 30.0}, search={"trials": 2})
    sweeps.run(spec)
    assert {run.exit_code for run in server.runs.values()} == {0}
    assert len(server.runs) == 1 + 2 + 2
    names = {run.values["displayName"]: run for run in server.runs.values()}
    assert len(names["ce (baseline)"].history) == 4
    assert {run.values["groupName"] for run in server.runs.values()} == {names["small"].values["groupName"]}
    before = set(server.artifacts)
    assert {name for name, _ in before} >= {"small-champion", "small-result"}
    sweeps.resume(directory(spec))
    assert {name: run.opened for name, run in names.items() if run.opened > 1} == {"small": 2}
    assert server.artifacts == before
    assert len(server.runs) == 5


def test_an_interrupted_upload_is_completed_by_a_resume(small_sweep: MakeSweep, server: WandbServer):
    spec = small_sweep(tracking=ONLINE, search={"trials": 2})
    server.unavailable = "/file_stream"
    with pytest.raises(TrackingBehind, match="Timed out"):
        sweeps.run(spec)
    assert {run.exit_code for run in server.runs.values()} == {None}
    server.unavailable = ""
    sweeps.resume(directory(spec))
    assert [run.exit_code for run in server.runs.values()] == [0] * 5
    assert sorted(len(run.history) for run in server.runs.values()) == [0, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("status", "problem"),
    [(401, "refuses the login, or access to project longtail-sweeps .* set WANDB_API_KEY"), (500, "cannot be reached")],
)
def test_a_server_that_refuses_or_fails_is_reported_in_one_line(
    status: int, problem: str, small_sweep: MakeSweep, server: WandbServer
):
    server.status = status
    spec = small_sweep(tracking=ONLINE, search={"trials": 2})
    with pytest.raises(TrackingBehind, match=f"{server.url} {problem}") as caught:
        sweeps.run(spec)
    assert "\n" not in str(caught.value)
    server.status = 200
    sweeps.resume(directory(spec))
    assert [run.exit_code for run in server.runs.values()] == [0] * 5, "the same process may write the rest"


def test_a_missing_login_is_reported_without_a_prompt(small_sweep: MakeSweep):
    with pytest.raises(TrackingBehind, match=r"API key.*set WANDB_API_KEY .*`wandb login`.*tracking\.mode to offline"):
        sweeps.run(small_sweep(tracking=ONLINE | {"flush_timeout": 300.0}, search={"trials": 2}, baselines=[]))


def test_offline_files_can_be_synchronised(small_sweep: MakeSweep, server: WandbServer):
    spec = small_sweep(tracking=OFFLINE, search={"trials": 2})
    sweeps.run(spec)
    wandb.teardown()
    places = [str(run.directory) for run in wandb_runs(Path(spec.storage))]
    command = [sys.executable, "-m", "wandb", "sync", *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.runs) == 5
    assert {run.exit_code for run in server.runs.values()} == {0}
    assert not any(run.values["host"] for run in server.runs.values())
    assert {name for name, _ in server.artifacts} >= {"small-champion", "small-result"}


def test_repeated_calls_open_the_run_again_and_the_last_one_is_kept(tmp_path: Path):
    artifacts, storage = tmp_path / "artifacts", tmp_path / "storage"
    artifacts.mkdir()
    spec = WandbTracking(mode="offline")
    spec.prepare(storage)
    tracker = spec.open(TrackedSweep("1", "name", {"seed": 1}, 1, {"stage1_loss": [(1, 0.5)]}), storage)
    tracker.interrupted()
    tracker.interrupted()
    for number in range(4):  # within a second, in which wandb's directories have equal names
        tracker.finish({"acc_all": number / 10}, artifacts, None, f"note {number}")
    tracker.interrupted()
    wandb.teardown()
    (run,) = wandb_runs(storage)
    assert (run.summary["acc_all"], run.info.notes, run.exit_code) == (0.3, "note 3", 0)
    assert (run.config["seed"], run.history[1]["stage1_loss"]) == (1, 0.5)


def test_invalid_names_are_refused():
    with pytest.raises(UserError, match="project"):
        TRACKERS.parse({"kind": "wandb", "project": "a/b"})
