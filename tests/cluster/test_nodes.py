"""Packs on several nodes: the same results as on one, a bank without a shared disk or from a store, a bad lane."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ledgers import pack_lines, runs_by_key
from support.workers import given_a_pack
from support.world import World

import sweeps
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec

MakeSweep = Callable[..., SweepSpec]
SECTIONS: dict[str, Any] = {"search": {"trials": 6}, "resources": {"lanes_per_pack": 2}}


def run_on(
    world: World, document: dict[str, Any], *more: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`lt-sweep run` on the cluster, from this machine."""
    file = world.place / f"{document['name']}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return subprocess.run(
        [sys.executable, "-m", "sweeps.cli.main", "run", str(file), *more],
        env=world.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


Outcome = tuple[Result, dict[str, dict[str, Any]]]
"""What a sweep came to, and its finished runs by key."""


def outcome_on(world: World, spec: SweepSpec) -> Outcome:
    """Run a sweep on the cluster, to its end."""
    done = run_on(world, spec.resolved())
    assert done.returncode == 0, done.stderr
    result = (Path(spec.storage) / spec.name / "result.json").read_text()
    return Result.model_validate_json(result), runs_by_key(spec)


def assert_the_same(found: Outcome, expected: Outcome) -> None:
    """To the last bit."""
    assert found[0].winner == expected[0].winner
    assert found[0].trials == expected[0].trials
    assert found[1] == expected[1]


@pytest.fixture
def expected(small_sweep: MakeSweep) -> Outcome:
    spec = small_sweep(name="expected", **SECTIONS)
    return sweeps.run(spec), runs_by_key(spec)


@pytest.mark.parametrize("store", ["object store", "directory", "s3"])
def test_three_nodes_come_to_what_one_process_comes_to_run_for_run(
    store: str, small_sweep: MakeSweep, world: World, expected: Outcome, tmp_path: Path
) -> None:
    bank_store = {"object store": None, "directory": str(tmp_path / "banks"), "s3": f"s3://{world.s3.bucket}/own"}[
        store
    ]
    backend = {"kind": "ray", "bank_store": bank_store}
    spec = small_sweep(name=f"nodes-{store.replace(' ', '-')}", backend=backend, **SECTIONS)
    assert_the_same(outcome_on(world, spec), expected)


def test_three_nodes_come_to_what_one_node_comes_to_run_for_run(small_sweep: MakeSweep, world: World) -> None:
    """One node that takes packs, that is: the head takes none."""
    on_three = outcome_on(world, small_sweep(name="on-three", backend={"kind": "ray"}, **SECTIONS))
    world.workers[-1].stop()
    try:
        world.wait_for_nodes()
        on_one = outcome_on(world, small_sweep(name="on-one", backend={"kind": "ray"}, **SECTIONS))
    finally:
        world.mend()
    assert_the_same(on_one, on_three)


def test_a_node_that_joins_is_given_packs(small_sweep: MakeSweep, world: World, tmp_path: Path) -> None:
    """A sweep begun on one node; whoever joins while it runs takes part."""
    sections: dict[str, Any] = {
        "training": {"epochs": 400},
        "search": {"trials": 24, "proposal_batch": 6},
        "resources": {"lanes_per_pack": 2},
    }
    undisturbed = sweeps.run(small_sweep(name="here", **sections))
    late = world.workers[-1]
    late.stop()
    spec = small_sweep(name="joined", backend={"kind": "ray"}, **sections)
    file = world.place / "joined.yaml"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    log = (tmp_path / "log").open("w")
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli.main", "run", str(file)], env=world.environment(), stdout=log, stderr=log
    )
    took_part = False
    try:
        while driver.poll() is None and not pack_lines(Path(spec.storage) / spec.name):
            time.sleep(0.1)
        late.start()
        took_part = given_a_pack(late, world.workers[:-1])
        driver.wait(300)
    finally:
        driver.kill()
        driver.wait()
        world.mend()
    assert driver.returncode == 0, (tmp_path / "log").read_text()
    assert took_part
    result = Result.model_validate_json((Path(spec.storage) / spec.name / "result.json").read_text())
    assert result.winner == undisturbed.winner
    assert result.trials == undisturbed.trials


KILLER = '''
"""Cross entropy that kills the process it runs in when the learning rate is too high: a lane that cannot be trained."""
import os
from typing import Literal
from lt_train.losses.cross_entropy import CrossEntropy
from lt_train.methods.base import TrainedMethod

class Killer(TrainedMethod):
    """Cross entropy that kills."""
    kind: Literal["killer"] = "killer"

    def loss(self, lanes, class_counts):
        """Loss, or the end of it all."""
        if float(lanes["lr"].max()) > 0.05:
            os._exit(1)
        return CrossEntropy()
'''


@pytest.fixture
def killer(world: World) -> Iterator[str]:
    """A package with a method that kills workers, installed on every node."""
    package = world.plugins / "killing"
    (package / "methods").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "methods" / "__init__.py").touch()
    (package / "methods" / "killer.py").write_text(KILLER)
    yield package.name
    shutil.rmtree(package)


def test_a_lane_that_kills_its_worker_is_found_and_failed_alone(
    small_sweep: MakeSweep, world: World, killer: str, tmp_path: Path
) -> None:
    """Of six trials in one pack, those above a rate: each is reported failed, and the others are trained."""
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
    done = run_on(world, document, *options, timeout=400)
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    rates = {trial["params"]["method.lr"]: trial["seeds"][0]["failure"] for trial in trials}
    assert len(rates) == 6
    deadly = {rate for rate in rates if rate > 0.05}
    assert 0 < len(deadly) < 6, "or the test shows nothing"
    assert {rate for rate, failure in rates.items() if failure} == deadly
    assert all("its process failed 2 times with this run alone in it" in str(rates[rate]) for rate in deadly)
    status = json.loads((tmp_path / "runs" / "killing" / "progress.json").read_text())
    assert status["trials_failed"] == len(deadly)
    assert status["packs_failed"] >= 3
    again = run_on(world, document, *options, timeout=100)
    assert json.loads(again.stdout)["trials"] == trials, "nothing is tried again"
