"""Requests to a job API and the handling of its answers, with a fake API."""

from __future__ import annotations

import contextlib
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

import sweeps.cli.app
from lt_train.core.errors import UserError
from sweeps.cli import status as following
from sweeps.cluster import environment
from sweeps.cluster.jobs import Cluster, JobOptions
from sweeps.cluster.upload import prepare_upload
from sweeps.config.spec import SweepSpec

ROOT = Path(__file__).parents[3]

MakeSweep = Callable[..., SweepSpec]


class JobApi:
    """A fake of Ray's client: stores submitted jobs, and lists them with increasing `start_time`."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.listed: list[SimpleNamespace] = []
        self.logs: dict[str, str] = {}
        self.failing: list[int] = []
        self.requests = 0

    def submit_job(self, **job: Any) -> None:
        RuntimeEnv(**job["runtime_env"])  # validates the combination of fields
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
        self.requests += 1
        if self.requests in self.failing:
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


def run_entrypoint(job: dict[str, Any], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a job's entry point like Ray: in a shell, with the upload as working directory and on Python's path."""
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
    """A working directory other than the repository."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


ADDRESS = ("--address", "http://127.0.0.1:8265")


def lt_sweep(*arguments: object) -> int:
    """Run the command in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return sweeps.cli.app.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)


def written(spec: SweepSpec, file: Path, **dataset: Any) -> Path:
    document = spec.resolved()
    document["dataset"] |= dataset
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


@pytest.mark.parametrize("path", ["yaml.py", "yaml/__init__.py"])
def test_uploaded_files_cannot_be_imported(
    path: str, cluster: Cluster, job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path
) -> None:
    """A sweep file may name a file of code as its features, with the name of a module that the driver imports."""
    (elsewhere / path).parent.mkdir(exist_ok=True)
    (elsewhere / path).write_text("raise SystemExit('imported')")
    file = written(small_sweep(backend={"kind": "ray"}, storage="/storage"), elsewhere / "sweep.yaml", path=path)
    with prepare_upload(file) as upload:
        cluster.submit(
            ["validate", upload.file],
            sweep="small",
            storage="/storage",
            options=JobOptions({}),
            working_dir=upload.directory,
            place=upload.place,
        )
        assert (upload.directory / upload.place / path).exists()
        done = run_entrypoint(job_api.sent[0], upload.directory)
    assert (done.returncode, done.stdout) == (0, "1 sweep file valid\n"), done.stderr


def test_a_sweep_in_a_container_is_sent_as_an_environment_variable(
    cluster: Cluster, job_api: JobApi, small_sweep: MakeSweep, features_file: Path, elsewhere: Path, tmp_path: Path
) -> None:
    """With a container image, Ray accepts nothing but environment variables."""
    with np.load(features_file) as features:  # one view, and fewer test images
        few = {**features, "train_features": features["train_features"][0]}
    few |= {"test_features": few["test_features"][0, ::3], "test_labels": few["test_labels"][::3]}
    np.savez(elsewhere / "mine.npz", **few)
    spec = small_sweep(search={"trials": 1}, backend={"kind": "ray"})
    file = written(spec, elsewhere / "sweep.yaml", path="mine.npz")
    inside = tmp_path / "inside"
    inside.mkdir()
    with prepare_upload(file) as upload:
        cluster.submit(
            ["run", upload.file, "--backend", "inline"],
            sweep="small",
            storage=spec.storage,
            options=JobOptions({"MINE": "1"}, image="registry.example/sweeps:1"),
            working_dir=upload.directory,
            place=upload.place,
        )
    (job,) = job_api.sent
    assert {*job["runtime_env"]} == {"image_uri", "env_vars"}
    assert job["runtime_env"]["image_uri"] == "registry.example/sweeps:1"
    assert job["runtime_env"]["env_vars"]["MINE"] == "1"
    done = run_entrypoint(job, inside)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "small" / "result.json").exists()
    assert not [*inside.iterdir()]


def test_the_size_of_inline_files_is_limited(
    job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "mine.npz").write_bytes(os.urandom(environment.MAX_INLINE_BYTES))
    file = written(small_sweep(backend={"kind": "ray"}), elsewhere / "sweep.yaml", path="mine.npz")
    assert lt_sweep("submit", file.name, *ADDRESS, "--image", "sweeps:1") == 2
    assert "in a container must take at most 48 KiB" in capsys.readouterr().err
    assert not job_api.sent


def test_code_cannot_be_shipped_into_a_container(
    job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(small_sweep(backend={"kind": "ray"}), elsewhere / "sweep.yaml")
    assert lt_sweep("submit", file.name, *ADDRESS, "--image", "sweeps:1", "--ship-code") == 2
    errors = capsys.readouterr().err
    assert "--image" in errors
    assert "--ship-code" in errors
    assert not job_api.sent


def ran(sweep: str, storage: str, **more: str) -> dict[str, str]:
    return {"lt.sweep": sweep, "lt.storage": storage, **more}


def test_a_name_finds_the_job_that_has_not_ended_else_the_latest(cluster: Cluster, job_api: JobApi) -> None:
    for job_id, state in (("first", "FAILED"), ("second", "RUNNING"), ("third", "STOPPED")):
        job_api.add(job_id, ran("demo", "/storage"), {}, state)
    assert cluster.find("demo").id == "second"
    assert cluster.find("first").id == "first"
    job_api.listed[1].status.value = "SUCCEEDED"
    assert cluster.find("demo").id == "third"


def test_an_ambiguous_name_is_refused_with_the_candidates(cluster: Cluster, job_api: JobApi) -> None:
    job_api.add("of-ann", ran("demo", "/ann"), {}, "FAILED")
    job_api.add("of-ann-again", ran("demo", "/ann"), {}, "RUNNING")
    job_api.add("of-bob", ran("demo", "/bob"), {}, "SUCCEEDED")
    with pytest.raises(UserError, match="several sweeps named 'demo'; give the id of a job instead:") as refused:
        cluster.find("demo")
    listed = {"  of-ann-again (running) in /ann", "  of-bob (succeeded) in /bob"}
    assert {*str(refused.value).splitlines()[1:]} == listed
    assert cluster.find("of-ann").storage == "/ann"


def test_a_resume_uses_the_options_of_the_last_job(
    cluster: Cluster, job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path
) -> None:
    file = written(small_sweep(backend={"kind": "ray"}, storage="/storage"), elsewhere / "sweep.yaml")
    options = ("--image", "sweeps:1", "--cpus", "2", "--gpus", "0.5", "--env", "MINE=1", "--secret-file", "ONE=/one")
    assert lt_sweep("submit", file.name, *ADDRESS, *options) == 0
    job_api.listed[-1].status.value = "FAILED"
    assert lt_sweep("resume", "small", *ADDRESS, "--gpus", "0", "--env", "YOURS=2", "--secret-file", "OTHER=/two") == 0
    first, second = job_api.sent
    assert second["entrypoint"].endswith("-m sweeps resume /storage/small")
    assert second["runtime_env"]["image_uri"] == "sweeps:1"
    assert (second["entrypoint_num_cpus"], second["entrypoint_num_gpus"]) == (2, None)
    kept, given = (one["runtime_env"]["env_vars"] for one in (first, second))
    assert {name: value for name, value in given.items() if name not in kept} == {
        "YOURS": "2",
        "LT_SWEEP_SECRET_FILE_OTHER": "/two",
    }
    assert {*kept} - {*given} == {"LT_SWEEP_JOB_FILES"}
    assert cluster.find("small").options.cpus == 2


def test_a_resume_of_shipped_code_requires_the_code_again(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"env_vars": {"LT_ALLOW_IMPORT": "my_methods,others"}}
    job_api.add("first", ran("demo", "/storage", **{"lt.options": '{"ship_code": true}'}), environment, "FAILED")
    for options in ((), ("--ship-code",)):
        assert lt_sweep("resume", "demo", *ADDRESS, *options) == 2
        assert "--ship-code --allow-import my_methods --allow-import others" in capsys.readouterr().err
    assert not job_api.sent
    assert lt_sweep("resume", "demo", *ADDRESS, "--image", "sweeps:1") == 0
    options = job_api.sent[0]["metadata"]["lt.options"]
    assert json.loads(options) == {"ship_code": False, "image": "sweeps:1", "cpus": 0, "gpus": 0}


def test_a_job_without_recorded_options_can_be_resumed(job_api: JobApi) -> None:
    """For example a RayJob of KubeRay, whose manifest a person wrote."""
    job_api.add("demo", ran("demo", "/storage"), {"env_vars": {"LT_SWEEP_JOB": "demo", "MINE": "1"}}, "FAILED")
    assert lt_sweep("resume", "demo", *ADDRESS) == 0
    assert job_api.sent[0]["runtime_env"]["env_vars"]["MINE"] == "1"


def test_a_watch_continues_after_a_short_outage(
    job_api: JobApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    job_api.add("first", ran("demo", "/storage"), {}, "RUNNING")
    job_api.failing = [4, 5]  # request 1 finds the job, request 2 reads its progress

    def watch() -> int:
        threading.Timer(1.0, lambda: setattr(job_api.listed[0].status, "value", "SUCCEEDED")).start()
        return lt_sweep("status", "demo", *ADDRESS, "--watch")

    assert watch() == 0
    assert job_api.requests > 5
    shown = capsys.readouterr()
    assert shown.err.count("the tunnel is down") == 1
    assert "sweep demo: finished" in shown.out
    job_api.listed[0].status.value, job_api.requests = "RUNNING", 0
    monkeypatch.setattr(following, "UNREACHABLE_SECONDS", 0.0)
    assert watch() == 1
    assert "failed: the tunnel is down" in capsys.readouterr().err


def test_a_watch_fails_if_its_first_request_fails(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
    job_api.add("first", ran("demo", "/storage"), {}, "RUNNING")
    job_api.failing = [1]
    assert lt_sweep("status", "demo", *ADDRESS, "--watch") == 1
    assert "the tunnel is down" in capsys.readouterr().err


PROGRESS = """lt-progress {"sweep": "demo", "state": "%s", "note": "%s", "at_ms": 1}"""


@pytest.mark.parametrize(
    ("job_state", "log", "state", "note"),
    [
        (
            "STOPPED",
            PROGRESS % ("running", "x"),
            "stopped",
            "`lt-sweep resume demo --address http://127.0.0.1:8265`",
        ),
        (
            "SUCCEEDED",
            PROGRESS % ("finished", ""),
            "finished",
            "`lt-sweep logs demo --address http://127.0.0.1:8265`",
        ),
        (
            "FAILED",
            PROGRESS % ("running", "x") + "\nKilled\n",
            "failed",
            "`lt-sweep resume demo --address http://127.0.0.1:8265`",
        ),
        ("FAILED", PROGRESS % ("failed", "out of ideas") + "\nTraceback", "failed", "out of ideas"),
        ("FAILED", PROGRESS % ("stopped", "") + "\nlt-sweep: interrupted", "failed", "lt-sweep: interrupted"),
        ("FAILED", "Running entrypoint for job\nlt-sweep: no such secret", "failed", "lt-sweep: no such secret"),
        ("RUNNING", PROGRESS % ("finished", ""), "running", ""),
        ("RUNNING", PROGRESS % ("failed", "out of ideas"), "failed", "out of ideas"),
        ("PENDING", "", "preparing", "waiting for the cluster"),
    ],
)
def test_the_status_of_a_job_has_a_note_with_the_next_step(
    job_state: str, log: str, state: str, note: str, job_api: JobApi, capsys: pytest.CaptureFixture[str]
) -> None:
    job_api.add("first", ran("demo", "/storage"), {}, job_state)
    job_api.logs["first"] = log
    assert lt_sweep("status", "demo", *ADDRESS, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == state
    assert note in status["note"] if note else status["note"] == ""


def test_an_interrupted_watch_leaves_the_sweep_running(
    job_api: JobApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupt)
    job_api.add("first", ran("demo", "/storage"), {}, "RUNNING")
    assert lt_sweep("status", "demo", *ADDRESS, "--watch") == 130
    assert capsys.readouterr().err.startswith("lt-sweep: ")
    assert job_api.listed[0].status.value == "RUNNING"


def test_a_list_shows_complete_ids(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_fresh_is_passed_to_the_driver_of_the_first_job_only(
    job_api: JobApi, small_sweep: MakeSweep, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver recommends `--fresh` if it finds another sweep of this name; a resume does not pass it on."""
    file = written(small_sweep(backend={"kind": "ray"}, storage="/storage"), elsewhere / "sweep.yaml")
    assert lt_sweep("submit", file.name, *ADDRESS, "--fresh") == 0
    job_api.listed[-1].status.value = "FAILED"
    assert lt_sweep("resume", "small", *ADDRESS) == 0
    assert [job["entrypoint"].partition("-m sweeps ")[2] for job in job_api.sent] == [
        "run sweep.yaml --fresh",
        "resume /storage/small",
    ]
    assert capsys.readouterr().out.count("lt-sweep status small --address http://127.0.0.1:8265 --watch") == 2


def test_the_winner_of_a_matrix_member_is_not_shown_as_the_matrix_winner(
    job_api: JobApi, capsys: pytest.CaptureFixture[str]
) -> None:
    job_api.add("first", ran("matrix", "/storage"), {}, "SUCCEEDED")
    last = {"sweep": "matrix-resnet32", "state": "finished", "winner": "trial 3", "at_ms": 1}
    job_api.logs["first"] = f"lt-progress {json.dumps(last)}\n"
    assert lt_sweep("status", "matrix", *ADDRESS, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["winner"]) == ("finished", "")
    assert "`lt-sweep logs matrix --address http://127.0.0.1:8265`" in status["note"]


def test_a_log_as_json_cannot_be_followed(job_api: JobApi, capsys: pytest.CaptureFixture[str]) -> None:
    job_api.add("first", ran("demo", "/storage"), {}, "SUCCEEDED")
    job_api.logs["first"] = f"the table\n{PROGRESS % ('finished', '')}\nthe last line\n"
    assert lt_sweep("logs", "demo", *ADDRESS, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"job": "first", "sweep": "demo", "state": "succeeded", "log": "the table\nthe last line\n"}
    assert lt_sweep("logs", "demo", *ADDRESS) == 0
    assert capsys.readouterr().out == "the table\nthe last line\n"
    with contextlib.suppress(SystemExit):
        assert lt_sweep("logs", "demo", *ADDRESS, "--json", "--follow") == 2
    assert "--follow" in capsys.readouterr().err
