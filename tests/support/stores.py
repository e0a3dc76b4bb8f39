"""A sweep's runs in MLflow's SQLite store, read with MLflow's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow

from sweeps.config.spec import SweepSpec

__all__ = ["all_runs", "client"]


def client(spec: SweepSpec) -> Any:
    uri = f"sqlite:///{Path(spec.storage) / 'mlflow.db'}"
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def all_runs(spec: SweepSpec) -> list[Any]:
    found = client(spec)
    experiment = found.get_experiment_by_name("tests")
    return [] if experiment is None else list(found.search_runs([experiment.experiment_id], max_results=1000))
