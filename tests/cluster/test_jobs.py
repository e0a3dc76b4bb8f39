"""Sweeps as jobs of a real cluster: submitted, watched, stopped, resumed, by commands that a person types."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ledgers import pack_lines
from support.tracked import tracked_runs
from support.world import ROOT, World

from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec

MakeSweep = Callable[..., SweepSpec]


@pytest.fixture
def sweep_file(small_sweep: MakeSweep, world: World, tmp_path: Path) -> Callable[..., Path]:
    """`sweep_file("name", section={...})`: a file whose features travel with it, in a directory of its own."""

    def write(name: str, **sections: Any) -> Path:
        place = tmp_path / name
        place.mkdir()
        spec = small_sweep(name=name, backend={"kind": "ray"}, storage=str(world.place / "storage"), **sections)
        document = spec.resolved()
        (place / "mine.npz").write_bytes(Path(document["dataset"]["path"]).read_bytes())
        document["dataset"]["path"] = "mine.npz"
        file = place / "sweep.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return file

    return write


class Shell:
    """`lt-sweep` from a laptop: nothing of the cluster's disks, only its address and token."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(
        self, *arguments: object, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "sweeps.cli.main", *map(str, arguments)],
            env=self.environment(),
            cwd=cwd or self.world.place,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        if check:
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    def environment(self) -> dict[str, str]:
        environment = self.world.environment()
        del environment["RAY_ADDRESS"]
        return {**environment, "RAY_API_SERVER_ADDRESS": self.world.head.url}


@pytest.fixture
def shell(world: World) -> Shell:
    return Shell(world)


def until(condition: Callable[[], bool], timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.fixture
def submitted(shell: Shell) -> Iterator[Callable[..., str]]:
    """Submits and returns the job's id; whatever still runs afterwards is stopped."""
    names: list[str] = []

    def submit(file: Path, *more: object) -> str:
        names.append(file.parent.name)
        answer = shell("submit", file.name, "--json", "--address", shell.world.head.url, *more, cwd=file.parent)
        return str(json.loads(answer.stdout.splitlines()[0])["job"])

    yield submit
    for name in names:
        shell("stop", name, "--address", shell.world.head.url, check=False)


def test_a_sweep_is_submitted_watched_and_found_finished(
    shell: Shell, sweep_file: Callable[..., Path], submitted: Callable[..., str], small_sweep: MakeSweep, world: World
) -> None:
    file = sweep_file("laptop", search={"trials": 4})
    job = submitted(file)
    watched = shell("status", "laptop", "--address", world.head.url, "--watch", "--json")
    seen = [json.loads(line) for line in watched.stdout.splitlines()]
    assert seen[-1]["state"] == "finished"
    assert seen[-1]["trials_finished"] == seen[-1]["trials"] == 6
    assert seen[-1]["best"]["trial"].startswith("los d=")
    assert [one["state"] for one in seen] == sorted(
        (one["state"] for one in seen), key=["preparing", "running", "finished"].index
    )
    result = Result.model_validate_json((world.place / "storage" / "laptop" / "result.json").read_text())
    import sweeps

    undisturbed = sweeps.run(small_sweep(name="here", search={"trials": 4}))
    assert result.winner == undisturbed.winner
    assert result.trials == undisturbed.trials

    printed = shell("logs", "laptop", "--address", world.head.url).stdout
    assert "laptop: test accuracy in %" in printed
    assert "lt-progress" not in printed
    listed = {row["job"]: row for row in json.loads(shell("list", "--address", world.head.url, "--json").stdout)}
    assert listed[job]["state"] == "succeeded"
    assert listed[job]["sweep"] == "laptop"
    table = shell("status", "laptop", "--address", world.head.url).stdout
    assert "sweep laptop: finished" in table
    assert "6 of 6 finished" in table
    assert f"job {job}" in table


def test_a_sweep_is_stopped_in_good_order_and_resumed(
    shell: Shell, sweep_file: Callable[..., Path], submitted: Callable[..., str], small_sweep: MakeSweep, world: World
) -> None:
    sections = {"training": {"epochs": 1600}, "search": {"trials": 6}, "resources": {"lanes_per_pack": 2}}
    tracking = {"kind": "mlflow", "uri": world.mlflow.url, "experiment": "stopped"}
    file = sweep_file("stopped", **sections, tracking=tracking)
    secret = f"MLFLOW_TRACKING_PASSWORD={world.place / 'sweeps.password'}"
    options = ("--env", "MLFLOW_TRACKING_USERNAME=sweeps", "--secret-file", secret)
    submitted(file, *options)
    ledger = world.place / "storage" / "stopped" / "ledger.jsonl"
    until(lambda: len(pack_lines(ledger.parent)) >= 3)
    second = shell("submit", file.name, "--address", world.head.url, cwd=file.parent, check=False)
    assert second.returncode == 2
    assert "sweep stopped is already running on" in second.stderr

    shell("stop", "stopped", "--address", world.head.url)
    status = json.loads(shell("status", "stopped", "--address", world.head.url, "--json").stdout)
    assert status["state"] == "stopped"
    assert statuses(world, "stopped") == {"KILLED", "FINISHED"}

    shell("resume", "stopped", "--address", world.head.url, *options)
    shell("status", "stopped", "--address", world.head.url, "--watch")
    result = Result.model_validate_json((world.place / "storage" / "stopped" / "result.json").read_text())
    import sweeps

    undisturbed = sweeps.run(small_sweep(name="here", **sections))
    assert result.winner == undisturbed.winner
    assert result.trials == undisturbed.trials
    assert statuses(world, "stopped") == {"FINISHED"}
    keys = [run["key"] for line in pack_lines(ledger.parent) for run in line["runs"]]
    assert len(keys) == len(set(keys)) == 2 * 6 + 1 + 2
    # What was secret is nowhere: not in results, not in what a job shows or prints.
    password = world.mlflow.user_password
    shown = shell("logs", "stopped", "--address", world.head.url).stdout
    shown += shell("list", "--address", world.head.url, "--json").stdout
    assert password not in shown
    for path in (world.place / "storage" / "stopped").rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes(), path


def statuses(world: World, experiment: str) -> set[str]:
    return {run["status"] for run in tracked_runs(world, experiment)}


def test_a_family_is_one_job(
    shell: Shell, sweep_file: Callable[..., Path], submitted: Callable[..., str], small_sweep: MakeSweep, world: World
) -> None:
    """Members one after another, each with its runs in MLflow, and the table that one process comes to."""
    tracking = {"kind": "mlflow", "uri": world.mlflow.url, "experiment": "relatives"}
    file = sweep_file("relatives", search={"trials": 2}, tracking=tracking)
    document = yaml.safe_load(file.read_text())
    axis = {"training.epochs": [2, 3]}
    file.write_text(yaml.safe_dump(document | {"matrix": axis}, sort_keys=False))
    secret = f"MLFLOW_TRACKING_PASSWORD={world.place / 'sweeps.password'}"
    job = submitted(file, "--env", "MLFLOW_TRACKING_USERNAME=sweeps", "--secret-file", secret)
    shell("status", "relatives", "--address", world.head.url, "--watch")
    status = json.loads(shell("status", job, "--address", world.head.url, "--json").stdout)
    assert status["state"] == "finished"
    assert "relatives-2" in shell("logs", "relatives", "--address", world.head.url).stdout

    import sweeps

    here = file.with_name("here.yaml")
    document = small_sweep(name="relatives", search={"trials": 2}).resolved()
    here.write_text(yaml.safe_dump(document | {"matrix": axis}, sort_keys=False))
    undisturbed = sweeps.run_matrix(sweeps.load_matrix(here))
    for row in undisturbed.rows:
        found = Result.model_validate_json((world.place / "storage" / row.sweep / "result.json").read_text())
        assert found.methods[0].mean == row.cells["los"].mean
    runs = tracked_runs(world, "relatives")
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert sorted(run["key"] for run in runs).count("sweep") == len(axis["training.epochs"])


def test_a_sweep_that_fails_says_why(
    shell: Shell, sweep_file: Callable[..., Path], submitted: Callable[..., str], world: World
) -> None:
    file = sweep_file("broken")
    (file.parent / "mine.npz").write_bytes(b"no features")
    submitted(file)
    watched = shell("status", "broken", "--address", world.head.url, "--watch", check=False)
    assert watched.returncode == 1
    status = json.loads(shell("status", "broken", "--address", world.head.url, "--json").stdout)
    assert status["state"] == "failed"
    assert "mine.npz" in status["note"]
    followed = shell("logs", "broken", "--address", world.head.url, "--follow", check=False)
    assert followed.returncode == 1
    assert "mine.npz" in followed.stdout


def test_code_travels_where_it_is_asked_to(
    shell: Shell, sweep_file: Callable[..., Path], submitted: Callable[..., str], world: World, tmp_path: Path
) -> None:
    """A method of one's own, in a package that the cluster does not have; without leave it is no kind."""
    package = tmp_path / "my_methods"
    (package / "methods").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "methods" / "__init__.py").touch()
    source = (ROOT / "lt_train" / "methods" / "ce.py").read_text()
    (package / "methods" / "mine.py").write_text(source.replace('"ce"', '"mine"').replace("PlainCrossEntropy", "Mine"))
    file = sweep_file(
        "plugged", search={"trials": 2, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}}, method="ce"
    )
    file.write_text(file.read_text().replace("kind: ce", "kind: mine", 1))
    refused = shell("submit", file.name, "--address", world.head.url, cwd=file.parent, check=False)
    assert refused.returncode == 2
    assert "method" in refused.stderr
    assert "'mine'" in refused.stderr
    environment = {**shell.environment(), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sweeps.cli.main", "submit", file.name, "--address", world.head.url),
            *("--ship-code", "--allow-import", "my_methods", "--watch"),
        ],
        env=environment,
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((world.place / "storage" / "plugged" / "result.json").read_text())
    assert result["winner"]["params"]["kind"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["status", "demo", "--address", "localhost:8265"], "--address must be the http:// address"),
        (["status", "demo", "--address", "http://127.0.0.1:1"], "the job API at http://127.0.0.1:1 failed"),
        (["logs", "demo"], "--address must be the http:// address of the cluster's job API"),
        (["status", "nobody"], "nobody is not a sweep directory"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(arguments: list[str], problem: str, tmp_path: Path) -> None:
    import os

    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli.main", *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert problem in done.stderr


def test_a_sweep_nobody_knows_is_told_with_those_there_are(shell: Shell, world: World) -> None:
    done = shell("status", "nobody", "--address", world.head.url, check=False)
    assert done.returncode == 2
    assert "knows no sweep or job 'nobody'; its sweeps:" in done.stderr
