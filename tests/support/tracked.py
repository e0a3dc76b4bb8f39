"""A sweep's runs on the MLflow server, read through its API and independently of the code under test."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

from support.cluster import LocalCluster, basic_auth

__all__ = ["experiment_id", "tracked_runs"]


def experiment_id(cluster: LocalCluster, name: str) -> str:
    """The id of the experiment with this name."""
    query = urllib.parse.urlencode({"experiment_name": name})
    return str(_call(cluster, f"experiments/get-by-name?{query}")["experiment"]["experiment_id"])


def tracked_runs(cluster: LocalCluster, experiment: str) -> list[dict[str, str]]:
    """The `key` and `status` of every run of an experiment."""
    request: dict[str, Any] = {"experiment_ids": [experiment_id(cluster, experiment)], "max_results": 1000}
    found = []
    while True:
        page = _call(cluster, "runs/search", request)
        for run in page.get("runs", []):
            tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
            found.append({"key": tags["lt.key"], "status": run["info"]["status"]})
        request["page_token"] = page.get("next_page_token")
        if not request["page_token"]:
            return found


def _call(cluster: LocalCluster, endpoint: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        f"{cluster.mlflow.url}/api/2.0/mlflow/{endpoint}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": basic_auth("admin", cluster.mlflow.password)},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
