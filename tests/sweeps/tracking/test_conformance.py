"""The contract of every tracker: calls may be repeated, and nothing is shown twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from sweeps.testing import check_tracker
from sweeps.tracking.mlflow import MlflowTracking
from sweeps.tracking.null import NullTracking


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
