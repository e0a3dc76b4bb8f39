"""Sweeps as jobs on a real cluster: submit, watch, stop and resume with `lt-sweep`."""

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
from support.cluster import ROOT, LocalCluster
from support.ledgers import pack_lines, run_lines
from support.tracked import tracked_runs

from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec

MakeSweep = Callable[..., SweepSpec]


@pytest.fixture
def sweep_file(small_sweep: MakeSweep, cluster: LocalCluster, tmp_path: Path) -> Callable[..., Path]:
    """`sweep_file("name", section={...})` writes a sweep file and its features to a directory of their own."""

    def write(name: str, **sections: Any) -> Path:
        place = tmp_path / name
        place.mkdir()
        spec = small_sweep(name=name, backend={"kind": "ray"}, storage=str(cluster.place / "storage"), **sections)
        document = spec.resolved()
        (place / "mine.npz").write_bytes(Path(document["dataset"]["path"]).read_bytes())
        document["dataset"]["path"] = "mine.npz"
        file = place / "sweep.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return file

    return write


class Shell:
    """Runs `lt-sweep` like a laptop, which has only the cluster's address and token."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def __call__(
        self, *arguments: object, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "sweeps", *map(str, arguments)],
            env=self.environment(),
            cwd=cwd or self.cluster.place,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        if check:
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    def environment(self) -> dict[str, str]:
        environment = self.cluster.environment()
        del environment["RAY_ADDRESS"]
        return {**environment, "RAY_API_SERVER_ADDRESS": self.cluster.head.url}


@pytest.fixture
def shell(cluster: LocalCluster) -> Shell:
    return Shell(cluster)


def until(condition: Callable[[], bool], timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.2)


@pytest.fixture
def submitted(shell: Shell) -> Iterator[Callable[..., str]]:
    """Submits a sweep and returns the job's id; running jobs are stopped at the end of the test."""
    names: list[str] = []

    def submit(file: Path, *more: object) -> str:
        names.append(file.parent.name)
        answer = shell("submit", file.name, "--json", "--address", shell.cluster.head.url, *more, cwd=file.parent)
        return str(json.loads(answer.stdout.splitlines()[0])["job"])

    yield submit
    for name in names:
        shell("stop", name, "--address", shell.cluster.head.url, check=False)


def test_a_sweep_is_submitted_and_watched(
    shell: Shell,
    sweep_file: Callable[..., Path],
    submitted: Callable[..., str],
    small_sweep: MakeSweep,
    cluster: LocalCluster,
) -> None:
    file = sweep_file("laptop", search={"trials": 4})
    job = submitted(file)
    watched = shell("status", "laptop", "--address", cluster.head.url, "--watch", "--json")
    seen = [json.loads(line) for line in watched.stdout.splitlines()]
    assert seen[-1]["state"] == "finished"
    assert seen[-1]["trials_finished"] == seen[-1]["trials"] == 6
    assert seen[-1]["best"]["trial"].startswith("los d=")
    assert [one["state"] for one in seen] == sorted(
        (one["state"] for one in seen), key=["preparing", "running", "finished"].index
    )
    result = Result.model_validate_json((cluster.place / "storage" / "laptop" / "result.json").read_text())
    import sweeps

    undisturbed = sweeps.run(small_sweep(name="here", search={"trials": 4}))
    assert result.winner == undisturbed.winner
    assert result.trials == undisturbed.trials

    printed = shell("logs", "laptop", "--address", cluster.head.url).stdout
    assert "laptop: test accuracy in %" in printed
    assert "lt-progress" not in printed
    listed = {row["job"]: row for row in json.loads(shell("list", "--address", cluster.head.url, "--json").stdout)}
    assert listed[job]["state"] == "succeeded"
    assert listed[job]["sweep"] == "laptop"
    table = shell("status", "laptop", "--address", cluster.head.url).stdout
    assert "sweep laptop: finished" in table
    assert "6 of 6 finished" in table
    assert f"job {job}" in table


def test_a_sweep_is_stopped_gracefully_and_resumed(
    shell: Shell,
    sweep_file: Callable[..., Path],
    submitted: Callable[..., str],
    small_sweep: MakeSweep,
    cluster: LocalCluster,
) -> None:
    sections = {"training": {"epochs": 1600}, "search": {"trials": 6}, "resources": {"lanes_per_pack": 2}}
    tracking = {"kind": "mlflow", "uri": cluster.mlflow.url, "experiment": "stopped"}
    file = sweep_file("stopped", **sections, tracking=tracking)
    secret = f"MLFLOW_TRACKING_PASSWORD={cluster.place / 'sweeps.password'}"
    options = ("--env", "MLFLOW_TRACKING_USERNAME=sweeps", "--secret-file", secret)
    submitted(file, *options)
    ledger = cluster.place / "storage" / "stopped" / "ledger.jsonl"
    until(lambda: len(pack_lines(ledger.parent)) >= 3)
    second = shell("submit", file.name, "--address", cluster.head.url, cwd=file.parent, check=False)
    assert second.returncode == 2
    assert "sweep stopped is already running on" in second.stderr

    shell("stop", "stopped", "--address", cluster.head.url)
    status = json.loads(shell("status", "stopped", "--address", cluster.head.url, "--json").stdout)
    assert status["state"] == "stopped"
    assert statuses(cluster, "stopped") == {"KILLED", "FINISHED"}

    shell("resume", "stopped", "--address", cluster.head.url, *options)
    shell("status", "stopped", "--address", cluster.head.url, "--watch")
    result = Result.model_validate_json((cluster.place / "storage" / "stopped" / "result.json").read_text())
    import sweeps

    undisturbed = sweeps.run(small_sweep(name="here", **sections))
    assert result.winner == undisturbed.winner
    assert result.trials == undisturbed.trials
    assert statuses(cluster, "stopped") == {"FINISHED"}
    keys = [run["key"] for run in run_lines(ledger.parent)]
    assert len(keys) == len(set(keys)) == 2 * 6 + 1 + 2
    # The password is not in results, and not in a job's output or metadata.
    password = cluster.mlflow.user_password
    shown = shell("logs", "stopped", "--address", cluster.head.url).stdout
    shown += shell("list", "--address", cluster.head.url, "--json").stdout
    assert password not in shown
    for path in (cluster.place / "storage" / "stopped").rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes(), path


def statuses(cluster: LocalCluster, experiment: str) -> set[str]:
    return {run["status"] for run in tracked_runs(cluster, experiment)}


def test_a_matrix_is_one_job(
    shell: Shell,
    sweep_file: Callable[..., Path],
    submitted: Callable[..., str],
    small_sweep: MakeSweep,
    cluster: LocalCluster,
) -> None:
    """Its sweeps run one after another, each with its runs in MLflow, with the results of one process."""
    tracking = {"kind": "mlflow", "uri": cluster.mlflow.url, "experiment": "matrix"}
    file = sweep_file("matrix", search={"trials": 2}, tracking=tracking)
    document = yaml.safe_load(file.read_text())
    axis = {"training.epochs": [2, 3]}
    file.write_text(yaml.safe_dump(document | {"matrix": axis}, sort_keys=False))
    secret = f"MLFLOW_TRACKING_PASSWORD={cluster.place / 'sweeps.password'}"
    job = submitted(file, "--env", "MLFLOW_TRACKING_USERNAME=sweeps", "--secret-file", secret)
    shell("status", "matrix", "--address", cluster.head.url, "--watch")
    status = json.loads(shell("status", job, "--address", cluster.head.url, "--json").stdout)
    assert status["state"] == "finished"
    assert "matrix-2" in shell("logs", "matrix", "--address", cluster.head.url).stdout

    import sweeps

    here = file.with_name("here.yaml")
    document = small_sweep(name="matrix", search={"trials": 2}).resolved()
    here.write_text(yaml.safe_dump(document | {"matrix": axis}, sort_keys=False))
    undisturbed = sweeps.run(sweeps.load_matrix(here))
    for row in undisturbed.rows:
        found = Result.model_validate_json((cluster.place / "storage" / row.sweep / "result.json").read_text())
        assert found.methods[0].mean == row.cells["los"].mean
    runs = tracked_runs(cluster, "matrix")
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert sorted(run["key"] for run in runs).count("sweep") == len(axis["training.epochs"])


def test_the_status_of_a_failed_sweep_has_the_reason(
    shell: Shell, sweep_file: Callable[..., Path], submitted: Callable[..., str], cluster: LocalCluster
) -> None:
    file = sweep_file("broken")
    (file.parent / "mine.npz").write_bytes(b"no features")
    submitted(file)
    watched = shell("status", "broken", "--address", cluster.head.url, "--watch", check=False)
    assert watched.returncode == 1
    status = json.loads(shell("status", "broken", "--address", cluster.head.url, "--json").stdout)
    assert status["state"] == "failed"
    assert "mine.npz" in status["note"]
    followed = shell("logs", "broken", "--address", cluster.head.url, "--follow", check=False)
    assert followed.returncode == 1
    assert "mine.npz" in followed.stdout


def test_code_is_shipped_on_request(
    shell: Shell, sweep_file: Callable[..., Path], submitted: Callable[..., str], cluster: LocalCluster, tmp_path: Path
) -> None:
    """A method in a file that the cluster does not have; without --allow-import it is unknown."""
    (tmp_path / "my_methods.py").write_text(
        '"""A method of a user."""\nfrom typing import Literal\n'
        "from lt_train.methods.base import METHODS, CrossEntropyMethod\n"
        "@METHODS.register\nclass Mine(CrossEntropyMethod):\n"
        '    """Cross entropy."""\n    kind: Literal["mine"] = "mine"\n'
    )
    file = sweep_file(
        "plugged", search={"trials": 2, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}}, method="ce"
    )
    file.write_text(file.read_text().replace("kind: ce", "kind: mine", 1))
    refused = shell("submit", file.name, "--address", cluster.head.url, cwd=file.parent, check=False)
    assert refused.returncode == 2
    assert "method" in refused.stderr
    assert "'mine'" in refused.stderr
    environment = {**shell.environment(), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sweeps", "submit", file.name, "--address", cluster.head.url),
            *("--ship-code", "--allow-import", "my_methods", "--watch"),
        ],
        env=environment,
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((cluster.place / "storage" / "plugged" / "result.json").read_text())
    assert result["winner"]["params"]["kind"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["status", "demo", "--address", "localhost:8265"], "--address must be the http:// address"),
        (["status", "demo", "--address", "http://127.0.0.1:1"], "the job API at http://127.0.0.1:1 failed"),
        (["logs", "demo"], "--address must be the http:// address of the cluster's job API"),
        (["status", "missing"], "missing"),
    ],
)
def test_invalid_addresses_are_refused(arguments: list[str], problem: str, tmp_path: Path) -> None:
    import os

    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert problem in done.stderr


def test_an_unknown_sweep_is_refused_with_the_known_ones(shell: Shell, cluster: LocalCluster) -> None:
    done = shell("status", "missing", "--address", cluster.head.url, check=False)
    assert done.returncode == 2
    assert "has no sweep or job 'missing'; its sweeps:" in done.stderr
