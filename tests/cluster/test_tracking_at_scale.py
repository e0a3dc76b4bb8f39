"""2,000 runs on one MLflow server: no errors, little CPU time of the driver, and a page that opens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.browser import dump_dom, logged_in
from support.cluster import ROOT, LocalCluster, basic_auth
from support.tracked import experiment_id, tracked_runs

RUNS = 2000

CHROMIUM = shutil.which("chromium")

WRITER = """
import json, sys, time
from functools import partial
from pathlib import Path
import pandas as pd
from sweeps.config.interfaces import TrackedSweep, TrackedTrial
from sweeps.tracking.mlflow import MlflowTracking
from sweeps.tracking.background import BackgroundTracker

uri, storage, runs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
spec = MlflowTracking(uri=uri, experiment="scale")
sweep = TrackedSweep("scale", "scale", {"trials": runs}, 1)
tracker = BackgroundTracker(lambda: spec.open(sweep, storage), flush_timeout=60)
curve = [(epoch, 0.5 + epoch / 100) for epoch in range(20)]
begin, worked = time.perf_counter(), time.process_time()
for number in range(runs):
    tracker.log_trial(partial(TrackedTrial,
        key=f"search-{number:04d}", name=f"los d={number / runs:.3f}", phase="search",
        params={"method": "los", "lr": 1e-3, "smooth_factor": number / runs, "weight_decay": 0.0, "epochs": 20},
        metrics={"acc_all": 0.5, "acc_many": 0.6, "acc_medium": 0.5, "acc_few": 0.4, "loma_mean": 1.0, "loma_cv": 0.1},
        series={"epoch_acc_all": curve, "epoch_val_acc_all": curve, "epoch_loss": curve, "seed_acc_all": curve[:5]},
        tables={"per_class": pd.DataFrame({"class": [0], "accuracy": [0.5]})}, failed=False, finished_ms=number + 1,
    ))
queued = time.perf_counter() - begin
artifacts = storage / "artifacts"
artifacts.mkdir(parents=True)
(artifacts / "spec.yaml").write_text("version: 1\\n")
complete = tracker.finish({"acc_all": 0.5}, artifacts, None)
print(json.dumps({
    "complete": complete, "error": str(tracker.last_error), "queued_seconds": queued,
    "cpu": time.process_time() - worked, "calls": tracker.seconds,
}))
"""


@pytest.fixture(scope="module")
def written(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measurements of a driver that writes all runs."""
    environment = {**cluster.environment(), "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
    done = subprocess.run(
        [sys.executable, "-c", WRITER, cluster.mlflow.url, str(tmp_path_factory.mktemp("scale")), str(RUNS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(answer)
    return answer


def test_one_server_accepts_2000_runs(cluster: LocalCluster, written: dict[str, Any]) -> None:
    assert written["complete"], written
    assert written["queued_seconds"] < 1.0, "log_trial must not wait for the server"
    # CPU time, which does not depend on other processes; docs/scale.md has wall-clock times.
    assert written["cpu"] / RUNS < 0.060, written

    runs = tracked_runs(cluster, "scale")
    assert len(runs) == len({run["key"] for run in runs}) == RUNS + 1
    assert {run["status"] for run in runs} == {"FINISHED"}

    begin = time.monotonic()
    request = urllib.request.Request(
        f"{cluster.mlflow.url}/ajax-api/2.0/mlflow/runs/search",
        data=json.dumps({"experiment_ids": [experiment_id(cluster, "scale")], "max_results": 100}).encode(),
        headers={"Content-Type": "application/json", "Authorization": basic_auth("admin", cluster.mlflow.password)},
    )
    with urllib.request.urlopen(request, timeout=60) as page:
        assert len(json.loads(page.read())["runs"]) == 100
    assert time.monotonic() - begin < 10, "the first request of the runs page"
    assert os.environ.get("MLFLOW_TRACKING_PASSWORD") is None


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_a_browser_opens_a_page_of_2000_runs(cluster: LocalCluster, written: dict[str, Any], tmp_path: Path) -> None:
    assert CHROMIUM is not None
    with logged_in(cluster.mlflow.url, basic_auth("admin", cluster.mlflow.password)) as server:
        url = f"{server}/#/experiments/{experiment_id(cluster, 'scale')}/runs?workflowType=machine_learning"
        dom = dump_dom(CHROMIUM, url, tmp_path / "profile")
    assert re.search(r'href="#/experiments/\d+/runs/\w+"[^>]*>(<[^>]*>)*scale<', dom), "the sweep's own run"
    assert "matching runs" in dom
