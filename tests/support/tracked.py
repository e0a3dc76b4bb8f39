"""What MLflow's server holds of a sweep, asked over its API and not through the code under test."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

from support.world import World, basic_auth

__all__ = ["experiment_id", "tracked_runs"]


def experiment_id(world: World, name: str) -> str:
    """Of the experiment with this name."""
    query = urllib.parse.urlencode({"experiment_name": name})
    return str(_ask(world, f"experiments/get-by-name?{query}")["experiment"]["experiment_id"])


def tracked_runs(world: World, experiment: str) -> list[dict[str, str]]:
    """Every run of an experiment: its `key` and its `status`."""
    asked: dict[str, Any] = {"experiment_ids": [experiment_id(world, experiment)], "max_results": 1000}
    found = []
    while True:
        page = _ask(world, "runs/search", asked)
        for run in page.get("runs", []):
            tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
            found.append({"key": tags["lt.key"], "status": run["info"]["status"]})
        asked["page_token"] = page.get("next_page_token")
        if not asked["page_token"]:
            return found


def _ask(world: World, what: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        f"{world.mlflow.url}/api/2.0/mlflow/{what}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": basic_auth("admin", world.mlflow.password)},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
