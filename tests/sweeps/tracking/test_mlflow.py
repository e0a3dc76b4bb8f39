"""MLflow tracking on a SQLite store: layout, repeated calls, unreachable stores, the local server."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from support.ledgers import run_lines
from support.stores import all_runs, client

import sweeps
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core.errors import SpecError, UserError
from sweeps.config.spec import SweepSpec
from sweeps.experiment.runner import TrackingBehind
from sweeps.store.layout import read_document, write_document
from sweeps.tracking.mlflow.store import open_client

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]
NO_WAIT = {"kind": "mlflow", "flush_timeout": 0.0}


def test_layout_of_a_finished_sweep(tracked: MakeSweep, tmp_path: Path):
    spec = tracked(selection={"seeds": 2, "finalists": 1})
    result = sweeps.run(spec)
    runs = {run.data.tags["lt.key"]: run for run in all_runs(spec)}
    assert set(runs) == {
        "sweep", "baseline-vanilla", "baseline-ce", f"finalist-{result.winner.trial:04d}",
        *(f"search-{number:04d}" for number in range(7)),
    }  # fmt: skip
    assert all(run.info.status == "FINISHED" for run in runs.values())
    parent = runs["sweep"]
    for key, run in runs.items():
        assert run.data.tags.get("mlflow.parentRunId") == (None if key == "sweep" else parent.info.run_id)
    assert parent.data.metrics["acc_all"] == pytest.approx(result.winner.mean.acc_all.value)
    assert parent.data.metrics["best_of_acc_few"] == pytest.approx(result.winner.best_of.acc_few)
    trial = runs["search-0003"]
    assert {"acc_all", "acc_many", "acc_medium", "acc_few", "val_acc_all", "loma_mean", "loma_cv"} <= set(
        trial.data.metrics
    )
    assert trial.info.run_name.startswith("los d=0.")
    assert trial.data.params["smooth_factor"] == str(result.trials[3].params["method.smooth_factor"])
    found = client(spec)
    seeds = found.get_metric_history(trial.info.run_id, "seed_acc_all")
    assert [(point.step, point.value) for point in seeds] == [
        (seed.seed, pytest.approx(seed.acc_all)) for seed in result.trials[3].seeds
    ]
    curve = found.get_metric_history(trial.info.run_id, "epoch_acc_all")
    assert [point.step for point in curve] == [1, 2, 3]
    assert curve[-1].value == pytest.approx(trial.data.metrics["acc_all"])
    assert [item.path for item in found.list_artifacts(trial.info.run_id)] == ["per_class.csv"]
    classes = mlflow.artifacts.load_text(f"{trial.info.artifact_uri}/per_class.csv").splitlines()
    assert classes[0] == "class,accuracy,loma,regularised_std"
    assert [line.split(",")[0] for line in classes[1:]] == [str(k) for k in range(6)]
    assert {item.path for item in found.list_artifacts(parent.info.run_id)} >= {
        "loma.png", "per_class.csv", "spec.yaml", "result.json",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}, "nothing is written to the working directory"


def test_the_parent_run_names_its_data_and_its_code(image_classifier: MakeSweep):
    spec = image_classifier()
    sweeps.run(spec)
    runs = {run.data.tags["lt.key"]: run for run in all_runs(spec)}
    inputs = runs["sweep"].inputs.dataset_inputs
    data = spec.dataset.load()
    parts = {one.tags[0].value: one.dataset for one in inputs}
    assert {name: part.digest for name, part in parts.items()} == {
        "training": data.train.digest()[:16],
        "validation": data.val.digest()[:16],
        "test": data.test.digest()[:16],
    }
    assert {part.name for part in parts.values()} == {"digits_lt"}
    profile = json.loads(parts["training"].profile)
    assert profile["class_counts"] == torch.bincount(data.train.labels).tolist()
    assert profile["rows"] == len(data.train)
    assert mlflow.data.get_source(parts["test"]) is not None, "MLflow can read the source"
    for run in runs.values():
        assert run.data.tags["mlflow.source.name"].startswith("longtail-sweeps")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(sweeps.__file__).parent, capture_output=True, text=True, check=False
    )
    assert runs["sweep"].data.tags.get("mlflow.source.git.commit", "") == commit.stdout.strip()
    sweeps.resume(Path(spec.storage) / "small")
    assert len(client(spec).get_run(runs["sweep"].info.run_id).inputs.dataset_inputs) == 3, "no duplicates"


def test_a_users_description_of_the_experiment_stays(tracked: MakeSweep):
    spec = tracked(search={"trials": 2}, baselines=[])
    open_client(f"sqlite:///{Path(spec.storage) / 'mlflow.db'}").create_experiment(
        "tests", tags={"mlflow.note.content": "mine"}
    )
    sweeps.run(spec)
    experiment = client(spec).get_experiment_by_name("tests")
    assert experiment.tags["mlflow.note.content"] == "mine"
    assert any(key.startswith("mlflow.sharedViewState.lt-") for key in experiment.tags)


def test_a_repeated_sweep_duplicates_nothing_and_completes_what_a_crash_left(tracked: MakeSweep):
    spec = tracked()
    sweeps.run(spec)
    before = {run.data.tags["lt.key"]: run.info.run_id for run in all_runs(spec)}
    found = client(spec)
    # State after a crash: one child was created and not finished, one was not created, the parent is open.
    found.update_run(before["sweep"], status="RUNNING")
    found.update_run(before["search-0001"], status="RUNNING")
    found.delete_run(before["search-0002"])
    points = len(found.get_metric_history(before["search-0001"], "epoch_acc_all"))
    sweeps.resume(Path(spec.storage) / "small")
    runs = all_runs(spec)
    after = {run.data.tags["lt.key"]: run.info.run_id for run in runs}
    assert len(runs) == len(after) == len(before)
    assert {key for key in after if after[key] != before[key]} == {"search-0002"}
    assert all(run.info.status == "FINISHED" for run in runs)
    assert len(found.get_metric_history(before["search-0001"], "epoch_acc_all")) == points


def test_seed_runs_are_grandchildren(tracked: MakeSweep):
    spec = tracked(
        tracking={"kind": "mlflow", "experiment": "tests", "seed_runs": True}, search={"trials": 2}, baselines=[]
    )
    result = sweeps.run(spec)
    runs = {run.data.tags["lt.key"]: run for run in all_runs(spec)}
    assert len(runs) == 1 + 2 + 4
    seed = runs["search-0001/1"]
    assert seed.data.tags["mlflow.parentRunId"] == runs["search-0001"].info.run_id
    assert seed.data.metrics["acc_all"] == pytest.approx(result.trials[1].seeds[1].acc_all)


def test_a_failed_trial_is_shown_as_failed(tracked: MakeSweep):
    spec = tracked(
        search={"algorithm": "grid", "trials": 2, "space": {"method.lr": {"choice": [1e-2, 1e38]}}}, baselines=[]
    )
    sweeps.run(spec)
    status = {run.data.tags["lt.key"]: run.info.status for run in all_runs(spec)}
    assert status == {"sweep": "FINISHED", "search-0000": "FINISHED", "search-0001": "FAILED"}


def test_an_unavailable_store_loses_nothing(tracked: MakeSweep, tmp_path: Path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the store's directory should be")
    away = tracked(tracking={"experiment": "tests", "uri": f"sqlite:///{blocked / 'm.db'}", **NO_WAIT})
    with pytest.raises(TrackingBehind, match=r"result.*`lt-sweep resume"):
        sweeps.run(away)
    assert (Path(away.storage) / "small" / "result.json").exists()
    back = tracked()
    result = sweeps.run(back)
    assert len(run_lines(Path(back.storage) / "small")) == result.runs.finished, "nothing is trained again"
    assert len(all_runs(back)) == 1 + 7 + 2


def test_an_unreachable_server_costs_seconds(tracked: MakeSweep):
    away = tracked(tracking={"uri": f"http://127.0.0.1:{free_port()}", **NO_WAIT}, search={"trials": 2})
    start = time.monotonic()
    with pytest.raises(TrackingBehind, match=r"Max retries exceeded|Connection refused"):
        sweeps.run(away)
    assert time.monotonic() - start < 60


def test_the_client_does_not_repeat_a_request_whose_answer_was_lost():
    """A repeated request would create a run twice. `BackgroundTracker` looks up existing runs before it retries."""
    requests: list[str] = []

    class NoAnswer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoAnswer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(MlflowException):
            open_client(f"http://127.0.0.1:{server.server_port}").create_run("1")
        server.shutdown()
    assert requests == ["/api/2.0/mlflow/runs/create"]


@pytest.mark.parametrize(
    ("user", "status", "text"),
    [
        ("ann", 401, "password of user ann; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (None, 401, "requires a login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("ann", 403, "user ann to write to experiment 'small'; set tracking.experiment"),
    ],
)
def test_refused_access_is_reported_with_the_remedy(
    user: str | None, status: int, text: str, tracked: MakeSweep, monkeypatch: pytest.MonkeyPatch
):
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"You are not authenticated. Please see a page.")

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    if user is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(TrackingBehind, match=f"{uri} .*{text}"):
            sweeps.run(tracked(tracking={"uri": uri, **NO_WAIT}, search={"trials": 2}))
        server.shutdown()


def test_a_stop_closes_incomplete_runs(tracked: MakeSweep, monkeypatch: pytest.MonkeyPatch):
    """For example if the artifact store is unavailable: the run exists, its tables do not."""
    spec = tracked(search={"trials": 2})

    def stop_at_a_child(*arguments: object) -> None:
        deadline = time.monotonic() + 30
        store = Path(spec.storage) / "mlflow.db"
        while not store.exists() or len(all_runs(spec)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        raise KeyboardInterrupt

    with monkeypatch.context() as away:
        away.setattr(mlflow.MlflowClient, "log_text", partial(_raise, OSError("artifact store unavailable")))
        away.setattr("sweeps.experiment.listeners.write_artifacts", stop_at_a_child)
        with pytest.raises(KeyboardInterrupt):
            sweeps.run(spec)
    status = {run.data.tags["lt.key"]: run.info.status for run in all_runs(spec)}
    assert status["sweep"] == "KILLED"
    assert len(status) > 1
    assert set(status.values()) == {"KILLED"}
    sweeps.resume(Path(spec.storage) / "small")
    assert {run.info.status for run in all_runs(spec)} == {"FINISHED"}


def _raise(error: BaseException, *arguments: object) -> None:
    raise error


def test_a_fresh_start_closes_the_run_of_a_killed_driver(tracked: MakeSweep):
    spec = tracked(search={"trials": 2})
    sweeps.run(spec)
    left = next(run.info.run_id for run in all_runs(spec) if run.data.tags["lt.key"] == "sweep")
    # State after kill -9.
    client(spec).update_run(left, status="RUNNING")
    file = Path(spec.storage) / "small" / "progress.json"
    progress = read_document(file)
    assert progress is not None
    write_document(file, progress | {"state": "running"})
    sweeps.run(spec, fresh=True)
    parents = {run.info.run_id: run.info.status for run in all_runs(spec) if run.data.tags["lt.key"] == "sweep"}
    assert len(parents) == 2
    assert parents.pop(left) == "KILLED"
    assert list(parents.values()) == ["FINISHED"]


def test_a_failed_baseline_is_noted(tracked: MakeSweep):
    spec = tracked(baselines=[{"kind": "vanilla"}, {"kind": "ce", "lr": 1e38}], search={"trials": 2})
    result = sweeps.run(spec)
    assert set(result.baselines) == {"vanilla"}
    assert any(note.startswith("baseline-ce failed: diverged") for note in result.notes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ui_serves_the_runs_table_on_localhost(tracked: MakeSweep):
    spec = tracked(search={"trials": 2})
    sweeps.run(spec)
    directory, port = Path(spec.storage) / "small", free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "ui", str(directory), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address, about = server.stdout.readline().strip().split(maxsplit=1)
        experiment = client(spec).get_experiment_by_name("tests").experiment_id
        page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
        assert address.startswith(f"{page}&viewStateShareKey=lt-")
        assert about == "(runs, best first)"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            assert b"<title>MLflow</title>" in answer.read()
        listening = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=False)
        if listening.returncode == 0:
            assert f"127.0.0.1:{port}" in listening.stdout
        with pytest.raises(UserError, match=f"port {port} .*--port"):
            spec.tracking.serve("small", Path(spec.storage), port)
    finally:
        server.terminate()
        # Longer than the command's own timeout for the server.
        assert server.wait(timeout=120) == 130
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server must end with the command"


def test_ui_of_a_sweep_that_is_not_in_the_store_is_refused(small_sweep: MakeSweep, tracked: MakeSweep):
    spec = tracked()
    open_client(f"sqlite:///{Path(spec.storage) / 'mlflow.db'}")
    with pytest.raises(UserError, match="does not contain sweep small yet; `lt-sweep resume`"):
        spec.tracking.serve("small", Path(spec.storage), free_port())


def test_ui_does_not_create_a_missing_store(small_sweep: MakeSweep, tracked: MakeSweep, tmp_path: Path):
    """The directory of a sweep may be copied without its store."""
    spec = tracked()
    with pytest.raises(UserError, match=r"mlflow\.db does not exist; `lt-sweep resume`"):
        spec.tracking.serve("small", Path(spec.storage), free_port())
    assert not list(tmp_path.rglob("*mlflow.db*"))


def test_options_of_a_sqlite_uri_are_not_part_of_the_file_name(tracked: MakeSweep, tmp_path: Path):
    store = tmp_path / "elsewhere" / "m.db"
    found = open_client(f"sqlite:///{store}?timeout=30")
    assert found.search_experiments()[0].name == "Default"
    assert {path.name for path in store.parent.iterdir()} - {"m.db-shm", "m.db-wal"} == {"m.db"}


def test_a_stopped_trial_is_finished_with_its_last_epoch(tracked: MakeSweep):
    search = {"trials": 4, "proposal_batch": 4, "early_stopping": {"kind": "successive_halving", "rungs": [1]}}
    spec = tracked(search=search)
    result = sweeps.run(spec)
    runs = {run.data.tags["lt.key"]: run for run in all_runs(spec)}
    found = client(spec)
    for trial in result.trials:
        run = runs[f"search-{trial.number:04d}"]
        assert run.info.status == "FINISHED"
        assert run.data.tags.get("stopped_after_epoch") == (None if trial.stopped is None else "1")
        assert run.data.metrics["objective"] == pytest.approx(trial.objective)
        curve = found.get_metric_history(run.info.run_id, "epoch_acc_all")
        assert [point.step for point in curve] == ([1, 2, 3] if trial.stopped is None else [1])
    assert [trial.stopped for trial in result.trials].count(1) == 2


@pytest.mark.parametrize(
    "uri",
    [
        "https://ann:sesame@mlflow.example",
        "https://sesame@mlflow.example",
        "postgresql://ann:sesame@db.example/mlflow",
        "postgresql://ann@db.example/mlflow?password=sesame",
        "mysql+pymysql://ann@db.example/mlflow?charset=utf8&passwd=sesame",
        "postgresql://ann@db.example/mlflow?sslpassword=sesame",
        "mssql+pyodbc:///?odbc_connect=UID%3Dann%3BPWD%3Dsesame",
    ],
)
def test_a_tracking_uri_must_not_contain_a_password(uri: str, small_sweep: MakeSweep):
    with pytest.raises(SpecError, match="must not contain a password or token") as refused:
        small_sweep(tracking={"kind": "mlflow", "uri": uri})
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("uri", ["https://mlflow.example/#/a@b", "postgresql://ann@db.example/mlflow?sslmode=require"])
def test_a_tracking_uri_may_contain_a_user(uri: str, small_sweep: MakeSweep):
    assert small_sweep(tracking={"kind": "mlflow", "uri": uri}).tracking.uri == uri


def test_every_parent_run_shows_the_stage_1_curve_once(tracked: MakeSweep):
    images = {
        "dataset": "digits_lt",
        "backbone": {"kind": "small_cnn", "width": 4},
        "stage1": {"kind": "ce", "epochs": 3, "val_every": 2},
        "search": {"trials": 2},
    }
    first, second = tracked(**images), tracked(name="other", **images)
    sweeps.run(first)
    sweeps.run(second)  # takes the backbone from the cache
    sweeps.resume(Path(first.storage) / "small")
    found = client(first)
    (checkpoint,) = (Path(first.storage) / "cache" / "checkpoints").glob("*.safetensors")
    about = load_checkpoint(checkpoint)[1]
    parents = [run for run in all_runs(first) if run.data.tags["lt.key"] == "sweep"]
    assert len(parents) == 2
    for parent in parents:
        for key, name in (("stage1_loss", "loss"), ("stage1_acc", "accuracy"), ("stage1_lr", "lr")):
            points = found.get_metric_history(parent.info.run_id, key)
            assert [(point.step, point.value) for point in points] == [
                (one["epoch"], pytest.approx(one[name])) for one in about["curve"]
            ]
        val = found.get_metric_history(parent.info.run_id, "stage1_val_acc_all")
        assert [(point.step, point.value) for point in val] == [(2, about["curve"][1]["val"]["all"])]
        test = found.get_metric_history(parent.info.run_id, "stage1_test_acc_few")
        assert [(point.step, point.value) for point in test] == [(3, about["accuracy"]["few"])]


def test_a_sweep_without_stage_1_has_no_curve_of_it(tracked: MakeSweep):
    spec = tracked(search={"trials": 2}, baselines=[])
    sweeps.run(spec)
    (parent,) = [run for run in all_runs(spec) if run.data.tags["lt.key"] == "sweep"]
    assert not [key for key in parent.data.metrics if key.startswith("stage1")]
