"""Sweeps on several nodes: identical results, banks without a shared disk, joining nodes, lanes that crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster import LocalCluster
from support.ledgers import pack_lines, runs_by_key
from support.workers import given_a_pack

import sweeps
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec

MakeSweep = Callable[..., SweepSpec]
SECTIONS: dict[str, Any] = {"search": {"trials": 6}, "resources": {"lanes_per_pack": 2}}


def run_on(
    cluster: LocalCluster, document: dict[str, Any], *more: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `lt-sweep run` here, with workers on the cluster."""
    file = cluster.place / f"{document['name']}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return subprocess.run(
        [sys.executable, "-m", "sweeps", "run", str(file), *more],
        env=cluster.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


Outcome = tuple[Result, dict[str, dict[str, Any]]]
"""The result of a sweep, and its finished runs by key."""


def outcome_on(cluster: LocalCluster, spec: SweepSpec) -> Outcome:
    """Run a sweep on the cluster and load its outcome."""
    done = run_on(cluster, spec.resolved())
    assert done.returncode == 0, done.stderr
    result = (Path(spec.storage) / spec.name / "result.json").read_text()
    return Result.model_validate_json(result), runs_by_key(spec)


def assert_identical(found: Outcome, expected: Outcome) -> None:
    assert found[0].winner == expected[0].winner
    assert found[0].trials == expected[0].trials
    assert found[1] == expected[1]


@pytest.fixture
def expected(small_sweep: MakeSweep) -> Outcome:
    spec = small_sweep(name="expected", **SECTIONS)
    return sweeps.run(spec), runs_by_key(spec)


@pytest.mark.parametrize("store", ["object store", "directory", "s3"])
def test_three_nodes_give_the_results_of_one_process(
    store: str, small_sweep: MakeSweep, cluster: LocalCluster, expected: Outcome, tmp_path: Path
) -> None:
    bank_store = {"object store": None, "directory": str(tmp_path / "banks"), "s3": f"s3://{cluster.s3.bucket}/own"}[
        store
    ]
    backend = {"kind": "ray", "bank_store": bank_store}
    spec = small_sweep(name=f"nodes-{store.replace(' ', '-')}", backend=backend, **SECTIONS)
    assert_identical(outcome_on(cluster, spec), expected)


def test_three_nodes_give_the_results_of_two(small_sweep: MakeSweep, cluster: LocalCluster) -> None:
    """The head is one of the nodes, and trains no packs."""
    on_three = outcome_on(cluster, small_sweep(name="on-three", backend={"kind": "ray"}, **SECTIONS))
    cluster.workers[-1].stop()
    try:
        cluster.wait_for_nodes()
        on_one = outcome_on(cluster, small_sweep(name="on-one", backend={"kind": "ray"}, **SECTIONS))
    finally:
        cluster.restore()
    assert_identical(on_one, on_three)


def test_a_joining_node_receives_packs(small_sweep: MakeSweep, cluster: LocalCluster, tmp_path: Path) -> None:
    """Start a sweep on one node, and add another while it runs."""
    sections: dict[str, Any] = {
        "training": {"epochs": 400},
        "search": {"trials": 24, "proposal_batch": 6},
        "resources": {"lanes_per_pack": 2},
    }
    undisturbed = sweeps.run(small_sweep(name="here", **sections))
    late = cluster.workers[-1]
    late.stop()
    spec = small_sweep(name="joined", backend={"kind": "ray"}, **sections)
    file = cluster.place / "joined.yaml"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    log = (tmp_path / "log").open("w")
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(file)], env=cluster.environment(), stdout=log, stderr=log
    )
    took_part = False
    try:
        while driver.poll() is None and not pack_lines(Path(spec.storage) / spec.name):
            time.sleep(0.1)
        late.start()
        took_part = given_a_pack(late, cluster.workers[:-1])
        driver.wait(300)
    finally:
        driver.kill()
        driver.wait()
        cluster.restore()
    assert driver.returncode == 0, (tmp_path / "log").read_text()
    assert took_part
    result = Result.model_validate_json((Path(spec.storage) / spec.name / "result.json").read_text())
    assert result.winner == undisturbed.winner
    assert result.trials == undisturbed.trials


KILLER = '''
"""Cross entropy that kills its process if the learning rate is high: a lane that cannot be trained."""
import os
from typing import Literal
from lt_train.losses import CrossEntropy
from lt_train.methods.base import METHODS, TrainedMethod

@METHODS.register
class Killer(TrainedMethod):
    """Cross entropy that kills its process."""
    kind: Literal["killer"] = "killer"

    def loss(self, lanes, class_counts):
        """The loss; exits if the learning rate is above 0.05."""
        if float(lanes["lr"].max()) > 0.05:
            os._exit(1)
        return CrossEntropy()
'''


@pytest.fixture
def killer(cluster: LocalCluster) -> Iterator[str]:
    """A module with a method that kills workers, installed on every node."""
    cluster.plugins.mkdir(exist_ok=True)
    module = cluster.plugins / "killing.py"
    module.write_text(KILLER)
    yield module.stem
    module.unlink()


def test_only_the_lanes_that_kill_their_worker_fail(
    small_sweep: MakeSweep, cluster: LocalCluster, killer: str, tmp_path: Path
) -> None:
    """Of six trials in one pack, those with a high learning rate fail, and the others are trained."""
    spec = small_sweep(
        name="killing",
        search={
            "trials": 6,
            "proposal_batch": 6,
            "algorithm": "random",
            "space": {"method.lr": {"loguniform": [1e-3, 1.0]}},
        },
        selection={"seeds": 1},
        baselines=[],
        backend={"kind": "ray"},
    )
    document = {**spec.resolved(), "method": {"kind": "killer"}}
    options = ("--allow-import", killer, "--json")
    done = run_on(cluster, document, *options, timeout=400)
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    rates = {trial["params"]["method.lr"]: trial["seeds"][0]["failure"] for trial in trials}
    assert len(rates) == 6
    deadly = {rate for rate in rates if rate > 0.05}
    assert 0 < len(deadly) < 6, "some trials must fail and some succeed"
    assert {rate for rate, failure in rates.items() if failure} == deadly
    assert all("2 times" in str(rates[rate]) for rate in deadly)
    status = json.loads((tmp_path / "runs" / "killing" / "progress.json").read_text())
    assert status["trials_failed"] == len(deadly)
    assert status["packs_failed"] >= 3
    again = run_on(cluster, document, *options, timeout=100)
    assert json.loads(again.stdout)["trials"] == trials, "failed trials are not retried by a resume"
