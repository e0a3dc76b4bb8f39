"""What is asked of a cluster's job API, and what its answers are taken for; nothing here starts one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.job_submission
import yaml
from ray.runtime_env import RuntimeEnv

import sweeps.cli.main
from lt_train.core.errors import UserError
from sweeps.cli import follow as following
from sweeps.cluster import inline_files
from sweeps.cluster.jobs import Cluster, JobOptions
from sweeps.cluster.upload import bundled
from sweeps.config.spec import SweepSpec

ROOT = Path(__file__).parents[3]

MakeSweep = Callable[..., SweepSpec]


class JobApi:
    """Stands in for Ray's client: keeps what it is sent, and lists it as jobs, newest first by `start_time`."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.listed: list[SimpleNamespace] = []
        self.logs: dict[str, str] = {}
        self.away: list[int] = []
        self.asked = 0

    def submit_job(self, **job: Any) -> None:
        RuntimeEnv(**job["runtime_env"])  # says what goes with what
        self.sent.append(job)
        self.add(job["submission_id"], job["metadata"], job["runtime_env"], "RUNNING")

    def add(self, job_id: str, metadata: dict[str, str], runtime_env: dict[str, Any], state: str) -> None:
        self.listed.append(
            SimpleNamespace(
                submission_id=job_id,
                metadata=metadata,
                runtime_env=runtime_env,
                status=SimpleNamespace(value=state),
                start_time=len(self.listed) + 1,
                message="",
            )
        )

    def list_jobs(self) -> list[SimpleNamespace]:
        self.asked += 1
        if self.asked in self.away:
            raise ConnectionError("the tunnel is down")
        return self.listed

    def get_job_logs(self, job_id: str) -> str:
        return self.logs.get(job_id, "")


@pytest.fixture
def job_api(monkeypatch: pytest.MonkeyPatch) -> JobApi:
    api = JobApi()

    class Client:
        def __new__(cls, address: str) -> Any:
            return api

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return api


@pytest.fixture
def cluster(job_api: JobApi) -> Cluster:
    return Cluster("http://127.0.0.1:8265")


def as_the_cluster(job: dict[str, Any], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a job's entry point as Ray does: by a shell, in the upload, which is on Python's path."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{directory}:{ROOT}",
        **job["runtime_env"]["env_vars"],
    }
    return subprocess.run(
        job["entrypoint"], shell=True, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of somebody else, which is the current one."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


ADDRESS = ("--address", "http://127.0.0.1:8265")


def lt_sweep(*arguments: object) -> int:
    """The command in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return sweeps.cli.main.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)


def written(spec: SweepSpec, file: Path, **dataset: Any) -> Path:
    document = spec.resolved()
    document["dataset"] |= dataset
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


@pytest.mark.parametrize("path", ["yaml.py", "yaml/__init__.py"])
def test_a_file_that_travels_is_no_module(
    path: str, cluster: Cluster, job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path
) -> None:
    """Whoever wrote a sweep file could name a file of code as its features, by a name that the driver imports."""
    (elsewhere / path).parent.mkdir(exist_ok=True)
    (elsewhere / path).write_text("raise SystemExit('imported')")
    file = written(small_sweep(backend={"kind": "ray"}, storage="/storage"), elsewhere / "sweep.yaml", path=path)
    with bundled(file) as bundle:
        cluster.submit(
            ["validate", bundle.file],
            sweep="small",
            storage="/storage",
            options=JobOptions({}),
            working_dir=bundle.directory,
            place=bundle.place,
        )
        assert (bundle.directory / bundle.place / path).exists()
        done = as_the_cluster(job_api.sent[0], bundle.directory)
    assert (done.returncode, done.stdout) == (0, "1 sweep file valid\n"), done.stderr


def test_a_sweep_goes_into_a_container_as_a_variable(
    cluster: Cluster, job_api: JobApi, small_sweep: MakeSweep, features_file: Path, elsewhere: Path, tmp_path: Path
) -> None:
    """Ray takes an image together with variables alone."""
    with np.load(features_file) as features:  # one view, of fewer test images
        few = {**features, "train_features": features["train_features"][0]}
    few |= {"test_features": few["test_features"][0, ::3], "test_labels": few["test_labels"][::3]}
    np.savez(elsewhere / "mine.npz", **few)
    spec = small_sweep(search={"trials": 1}, backend={"kind": "ray"})
    file = written(spec, elsewhere / "sweep.yaml", path="mine.npz")
    inside = tmp_path / "inside"
    inside.mkdir()
    with bundled(file) as bundle:
        cluster.submit(
            ["run", bundle.file, "--backend", "inline"],
            sweep="small",
            storage=spec.storage,
            options=JobOptions({"MINE": "1"}, image="registry.example/sweeps:1"),
            working_dir=bundle.directory,
            place=bundle.place,
        )
    (job,) = job_api.sent
    assert {*job["runtime_env"]} == {"image_uri", "env_vars"}
    assert job["runtime_env"]["image_uri"] == "registry.example/sweeps:1"
    assert job["runtime_env"]["env_vars"]["MINE"] == "1"
    done = as_the_cluster(job, inside)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "small" / "result.json").exists()
    assert not [*inside.iterdir()]


def test_what_is_too_large_for_a_variable_is_told(
    job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "mine.npz").write_bytes(os.urandom(inline_files.MOST_BYTES))
    file = written(small_sweep(backend={"kind": "ray"}), elsewhere / "sweep.yaml", path="mine.npz")
    assert lt_sweep("submit", file.name, *ADDRESS, "--image", "sweeps:1") == 2
    assert "KiB as text, and into a container go no more than 48 KiB; put them where" in capsys.readouterr().err
    assert not job_api.sent


def test_an_image_is_shipped_no_code(
    job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(small_sweep(backend={"kind": "ray"}), elsewhere / "sweep.yaml")
    assert lt_sweep("submit", file.name, *ADDRESS, "--image", "sweeps:1", "--ship-code") == 2
    assert "--image and --ship-code do not go together: Ray sends no files" in capsys.readouterr().err
    assert not job_api.sent


def ran(sweep: str, storage: str, **more: str) -> dict[str, str]:
    return {"lt.sweep": sweep, "lt.storage": storage, **more}


def test_a_name_stands_for_the_job_that_has_not_ended_else_the_latest(cluster: Cluster, job_api: JobApi) -> None:
    for job_id, state in (("first", "FAILED"), ("second", "RUNNING"), ("third", "STOPPED")):
        job_api.add(job_id, ran("demo", "/storage"), {}, state)
    assert cluster.find("demo").id == "second"
    assert cluster.find("first").id == "first"
    job_api.listed[1].status.value = "SUCCEEDED"
    assert cluster.find("demo").id == "third"


def test_a_name_of_several_sweeps_is_told_with_their_jobs(cluster: Cluster, job_api: JobApi) -> None:
    job_api.add("of-ann", ran("demo", "/ann"), {}, "FAILED")
    job_api.add("of-ann-again", ran("demo", "/ann"), {}, "RUNNING")
    job_api.add("of-bob", ran("demo", "/bob"), {}, "SUCCEEDED")
    told = "several sweeps 'demo'; say which by the id of its job:"
    with pytest.raises(UserError, match=told) as refused:
        cluster.find("demo")
    listed = {"  of-ann-again (running) in /ann", "  of-bob (succeeded) in /bob"}
    assert {*str(refused.value).splitlines()[1:]} == listed
    assert cluster.find("of-ann").storage == "/ann"


def test_a_resume_is_run_as_the_last_job_was(
    cluster: Cluster, job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path
) -> None:
    file = written(small_sweep(backend={"kind": "ray"}, storage="/storage"), elsewhere / "sweep.yaml")
    options = ("--image", "sweeps:1", "--cpus", "2", "--gpus", "0.5", "--env", "MINE=1", "--secret-file", "ONE=/one")
    assert lt_sweep("submit", file.name, *ADDRESS, *options) == 0
    job_api.listed[-1].status.value = "FAILED"
    assert lt_sweep("resume", "small", *ADDRESS, "--gpus", "0", "--env", "YOURS=2", "--secret-file", "OTHER=/two") == 0
    first, second = job_api.sent
    assert second["entrypoint"].endswith("sweeps.cli.main resume /storage/small")
    assert second["runtime_env"]["image_uri"] == "sweeps:1"
    assert (second["entrypoint_num_cpus"], second["entrypoint_num_gpus"]) == (2, None)
    kept, given = (one["runtime_env"]["env_vars"] for one in (first, second))
    assert {name: value for name, value in given.items() if name not in kept} == {
        "YOURS": "2",
        "LT_SWEEP_SECRET_FILE_OTHER": "/two",
    }
    assert {*kept} - {*given} == {"LT_SWEEP_JOB_FILES"}
    assert cluster.find("small").options.cpus == 2


def test_code_that_was_shipped_is_asked_for_again(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"env_vars": {"LT_ALLOW_IMPORT": "my_methods,others"}}
    job_api.add("first", ran("demo", "/storage", **{"lt.options": '{"ship_code": true}'}), environment, "FAILED")
    for said in ((), ("--ship-code",)):
        assert lt_sweep("resume", "demo", *ADDRESS, *said) == 2
        told = "job first ran code that was sent along from another command; give --ship-code --allow-import my_methods"
        assert f"{told} --allow-import others again" in capsys.readouterr().err
    assert not job_api.sent
    assert lt_sweep("resume", "demo", *ADDRESS, "--image", "sweeps:1") == 0
    said = job_api.sent[0]["metadata"]["lt.options"]
    assert json.loads(said) == {"ship_code": False, "image": "sweeps:1", "cpus": 0, "gpus": 0}


def test_a_job_that_says_nothing_of_its_options_is_resumed(job_api: JobApi) -> None:
    """As KubeRay's, whose manifest a person wrote."""
    job_api.add("demo", ran("demo", "/storage"), {"env_vars": {"LT_SWEEP_JOB": "demo", "MINE": "1"}}, "FAILED")
    assert lt_sweep("resume", "demo", *ADDRESS) == 0
    assert job_api.sent[0]["runtime_env"]["env_vars"]["MINE"] == "1"


def test_a_watch_outlasts_a_moment_without_the_cluster(
    job_api: JobApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    job_api.add("first", ran("demo", "/storage"), {}, "RUNNING")
    job_api.away = [4, 5]  # 1: which job; 2: how far

    def watch() -> int:
        threading.Timer(1.0, lambda: setattr(job_api.listed[0].status, "value", "SUCCEEDED")).start()
        return lt_sweep("status", "demo", *ADDRESS, "--watch")

    assert watch() == 0
    assert job_api.asked > 5
    shown = capsys.readouterr()
    assert shown.err.count("the tunnel is down; asking again for 60 s") == 1
    assert "sweep demo: finished" in shown.out
    job_api.listed[0].status.value, job_api.asked = "RUNNING", 0
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.0)
    assert watch() == 1
    assert "failed: the tunnel is down\n" in capsys.readouterr().err


def test_a_watch_does_not_begin_without_the_cluster(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
    job_api.add("first", ran("demo", "/storage"), {}, "RUNNING")
    job_api.away = [1]
    assert lt_sweep("status", "demo", *ADDRESS, "--watch") == 1
    assert "the tunnel is down" in capsys.readouterr().err


SAID = """lt-progress {"sweep": "demo", "state": "%s", "note": "%s", "at_ms": 1}"""


@pytest.mark.parametrize(
    ("became", "log", "state", "note"),
    [
        (
            "STOPPED",
            SAID % ("running", "x"),
            "stopped",
            "`lt-sweep resume demo --address http://127.0.0.1:8265` goes on",
        ),
        (
            "SUCCEEDED",
            SAID % ("finished", ""),
            "finished",
            "`lt-sweep logs demo --address http://127.0.0.1:8265` prints its table; "
            "/storage/demo/result.json holds all of it",
        ),
        (
            "FAILED",
            SAID % ("running", "x") + "\nKilled\n",
            "failed",
            "its driver was ended by force (Killed); `lt-sweep resume demo --address http://127.0.0.1:8265` goes on",
        ),
        ("FAILED", SAID % ("failed", "out of ideas") + "\nTraceback", "failed", "out of ideas"),
        ("FAILED", SAID % ("stopped", "") + "\nlt-sweep: interrupted", "failed", "lt-sweep: interrupted"),
        ("FAILED", "Running entrypoint for job\nlt-sweep: no such secret", "failed", "lt-sweep: no such secret"),
        ("RUNNING", SAID % ("finished", ""), "running", ""),
        ("RUNNING", SAID % ("failed", "out of ideas"), "failed", "out of ideas"),
        ("PENDING", "", "preparing", "waiting for the cluster to start it"),
    ],
)
def test_what_became_of_a_job_is_said_with_what_goes_on(
    became: str, log: str, state: str, note: str, job_api: JobApi, capsys: pytest.CaptureFixture[str]
) -> None:
    job_api.add("first", ran("demo", "/storage"), {}, became)
    job_api.logs["first"] = log
    assert lt_sweep("status", "demo", *ADDRESS, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["note"]) == (state, note)


def test_who_stops_watching_is_told_that_the_sweep_goes_on(
    job_api: JobApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupt)
    job_api.add("first", ran("demo", "/storage"), {}, "RUNNING")
    assert lt_sweep("status", "demo", *ADDRESS, "--watch") == 130
    assert capsys.readouterr().err == "lt-sweep: no longer followed; the sweep goes on\n"


def test_a_list_shows_ids_whole(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
    job = "lt-a-rather-long-name-20261125-211137-23461"
    job_api.add(job, ran("a-rather-long-name", "/storage/of/a/team/with/a/long/name"), {}, "RUNNING")
    assert lt_sweep("list", *ADDRESS) == 0
    printed = capsys.readouterr().out
    assert job in printed
    assert "…" not in printed
    assert printed.split()[:3] == ["sweep", "state", "started"]
    job_api.listed.clear()
    assert lt_sweep("list", *ADDRESS) == 0
    assert capsys.readouterr().out == "no sweeps on http://127.0.0.1:8265\n"


def test_a_sweep_is_started_over_where_it_is_asked_for(
    job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the driver advises that finds another sweep of this name; a resume does not start over once more."""
    file = written(small_sweep(backend={"kind": "ray"}, storage="/storage"), elsewhere / "sweep.yaml")
    assert lt_sweep("submit", file.name, *ADDRESS, "--fresh") == 0
    job_api.listed[-1].status.value = "FAILED"
    assert lt_sweep("resume", "small", *ADDRESS) == 0
    assert [job["entrypoint"].partition("sweeps.cli.main ")[2] for job in job_api.sent] == [
        "run sweep.yaml --fresh",
        "resume /storage/small",
    ]
    assert capsys.readouterr().out.count("lt-sweep status small --address http://127.0.0.1:8265 --watch") == 2


def test_the_last_winner_of_a_family_is_not_shown_as_its_own(
    job_api: JobApi, capsys: pytest.CaptureFixture[str]
) -> None:
    job_api.add("first", ran("matrix", "/storage"), {}, "SUCCEEDED")
    last = {"sweep": "matrix-resnet32", "state": "finished", "winner": "trial 3", "at_ms": 1}
    job_api.logs["first"] = f"lt-progress {json.dumps(last)}\n"
    assert lt_sweep("status", "matrix", *ADDRESS, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    note = "`lt-sweep logs matrix --address http://127.0.0.1:8265` prints its table"
    assert (said["state"], said["winner"], said["note"]) == ("finished", "", note)


def test_a_log_is_one_document_and_one_that_goes_on_is_not(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
    job_api.add("first", ran("demo", "/storage"), {}, "SUCCEEDED")
    job_api.logs["first"] = f"the table\n{SAID % ('finished', '')}\nthe last line\n"
    assert lt_sweep("logs", "demo", *ADDRESS, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"job": "first", "sweep": "demo", "state": "succeeded", "log": "the table\nthe last line\n"}
    assert lt_sweep("logs", "demo", *ADDRESS) == 0
    assert capsys.readouterr().out == "the table\nthe last line\n"
    with pytest.raises(SystemExit, match="2"):
        lt_sweep("logs", "demo", *ADDRESS, "--json", "--follow")
    assert "--follow: not allowed with argument --json" in capsys.readouterr().err
