"""The contract of every tracker: calls may be repeated, and nothing is shown twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from support.wandb_files import wandb_runs

from sweeps.testing import check_tracker
from sweeps.tracking.mlflow import MlflowTracking
from sweeps.tracking.null import NullTracking
from sweeps.tracking.wandb import WandbTracking


def test_no_tracking_conforms():
    check_tracker(NullTracking, shown=lambda storage: list(storage.iterdir()))


def shown(storage: Path) -> dict[str, Any]:
    """The parameters and files of every run, the points of some, and the registered models."""
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    keys = [run.data.tags["lt.key"] for run in found]
    assert len(keys) == len(set(keys)), "a run per trial"
    points = {
        run.data.tags["lt.key"]: [
            (name, point.step, point.value)
            for name in sorted(run.data.metrics)
            for point in client.get_metric_history(run.info.run_id, name)
        ]
        for run in found
        if run.data.tags["lt.key"] in ("sweep", "search-0000", "finalist-0000/2")
    }
    files = {
        run.data.tags["lt.key"]: sorted(one.path for one in client.list_artifacts(run.info.run_id)) for run in found
    }
    models = sorted((one.name, one.version) for one in client.search_model_versions())
    return {
        "runs": {run.data.tags["lt.key"]: run.data.params for run in found},
        **points,
        "files": files,
        "models": models,
    }


@pytest.mark.slow
def test_mlflow_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    check_tracker(MlflowTracking(seed_runs=True, experiment="tests"), shown)
    assert not list(tmp_path.iterdir()), "nothing is written to the working directory"


def wandb_shown(storage: Path) -> dict[str, Any]:
    """Names, notes, values and artifacts of the completely written runs, whose last records wandb writes later."""
    deadline = time.monotonic() + 30
    while True:
        runs = [run for run in wandb_runs(storage) if (run.directory / "longtail-sweeps.json").exists()]
        if all(run.exit_code is not None for run in runs):
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    keys = [run.key for run in runs]
    assert len(keys) == len(set(keys)), "a run per trial"
    return {
        run.key: {
            "about": (run.info.run_id, run.info.display_name, run.info.notes),
            "values": [
                {name: value for name, value in values.items() if not name.startswith("_")}  # no times
                for values in (run.config, run.summary, *run.history.values())
            ],
            "artifacts": {
                name: {path: file.read_bytes() for path, file in files.items()} for name, files in run.artifacts.items()
            },
        }
        for run in runs
    }


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_home")
def test_wandb_conforms():
    seen: list[dict[str, Any]] = [{}]

    def read(storage: Path) -> dict[str, Any]:
        seen[:] = [wandb_shown(storage)]
        return seen[0]

    check_tracker(WandbTracking(mode="offline", seed_runs=True), read)
    assert {"sweep", "search-0000", "finalist-0000/2"} <= set(seen[0])
    assert not list(Path.cwd().iterdir()), "nothing is written to the working directory"
