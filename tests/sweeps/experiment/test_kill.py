"""A driver killed at random moments, on Ray with MLflow, and resumed: no run is lost, repeated or changed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml
from support.ledgers import pack_lines, run_lines, runs_by_key

import sweeps
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec

pytestmark = pytest.mark.slow

KILLS = 3


def start(log: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a driver whose standard error is appended to a file."""
    with log.open("ab") as stream:
        return subprocess.Popen([sys.executable, "-m", "sweeps", *map(str, arguments)], stderr=stream)


def test_a_driver_killed_three_times_is_resumed_to_the_undisturbed_result(
    small_sweep: Callable[..., SweepSpec], tmp_path: Path, local_ray: str
):
    sections = {
        "training": {"epochs": 150},
        "search": {"trials": 16},
        "selection": {"seeds": 2, "finalists": 2},
        "resources": {"lanes_per_pack": 2},
        "tracking": {"kind": "mlflow", "experiment": "kills"},
    }
    file, spec = tmp_path / "sweep.yaml", small_sweep(**sections, backend={"kind": "ray", "address": local_ray})
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    undisturbed = small_sweep(**sections | {"name": "undisturbed", "tracking": "none"})
    expected = sweeps.run(undisturbed)

    directory, log = tmp_path / "runs" / "small", tmp_path / "stderr.txt"
    chance = random.Random(time.time_ns())
    seen: dict[str, dict] = {}
    for kill in range(KILLS):
        driver = start(log, "run", file) if kill == 0 else start(log, "resume", directory)
        before, deadline = len(pack_lines(directory)), time.monotonic() + 120
        # At a random moment once it trains: within a pack, between packs, or while MLflow is being written.
        while len(pack_lines(directory)) == before and time.monotonic() < deadline:
            assert driver.poll() is None, f"the sweep ended before it was killed: {log.read_text()}"
            time.sleep(0.01)
        time.sleep(chance.random())
        driver.kill()
        driver.wait()
        seen |= {run["key"]: run for run in run_lines(directory)}
    at_last_kill = len(seen)

    last = start(log, "resume", directory)
    assert last.wait(timeout=600) == 0, log.read_text()[-5000:]
    runs = run_lines(directory)
    keys = [run["key"] for run in runs]
    assert len(keys) == len(set(keys)), "a finished run was trained twice"
    by_key = {run["key"]: run for run in runs}
    assert all(by_key[key] == run for key, run in seen.items()), "a finished run was lost or changed"
    assert runs_by_key(spec) == runs_by_key(undisturbed)
    found = Result.model_validate_json((directory / "result.json").read_text())
    assert found.winner == expected.winner
    assert found.trials == expected.trials
    assert found.runs.finished == expected.runs.finished == 16 * 2 + 3 + 4
    assert 0 < at_last_kill

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("kills")
    tracked = client.search_runs([experiment.experiment_id], max_results=1000)
    names = sorted(run.data.tags["lt.key"] for run in tracked)
    assert names.count("sweep") == 1, "one parent run"
    assert len(names) == len(set(names)) == 1 + 2 + 16 + 2, "no duplicate child and none missing"
    assert {run.info.status for run in tracked} == {"FINISHED"}, "no run is left open"
