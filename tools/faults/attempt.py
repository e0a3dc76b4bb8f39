"""One sweep on a cluster with an injected fault: its file, its driver and the evaluation of its result.

The evaluation does not use logs. It reads lost and repeated work from the ledger, queries the API of MLflow, and
compares every field of the result with that of an undisturbed sweep.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from support.cluster import LocalCluster
from support.ledgers import pack_lines, run_lines
from support.tracked import tracked_runs

from sweeps.store.progress import read_progress

__all__ = ["Attempt", "Count"]

TRIALS, SEEDS, FINALISTS = 12, 2, 2
MLFLOW_RUNS = 1 + 2 + TRIALS + FINALISTS
"""Parent, baselines `vanilla` and `ce`, trials, finalists."""

MAX_ATTEMPTS = 6
"""Limit on waiting for a driver and restarting it, like the retries of a job."""


@dataclass
class Count:
    """Outcome of one disturbed sweep; all counts from `lost` to `left_running` should be 0.

    Attributes:
        runs: finished runs in the ledger.
        lost: runs that were finished at some time and are missing or different at the end.
        twice: finished runs that were trained again.
        doubled: duplicate MLflow runs.
        missing: expected MLflow runs that do not exist.
        left_running: MLflow runs that were never ended.
        same_winner, same_trials: whether these equal the result of an undisturbed sweep.
        drivers: number of drivers started.
        felt: whether the fault had an effect: a restarted driver, a lost or failed pack, a failed tracker call, a new
            node that received a pack. A fault has no effect while the sweep does not use the failed service.
        note: the error, if the sweep did not finish.
    """

    runs: int = 0
    lost: int = 0
    twice: int = 0
    doubled: int = 0
    missing: int = 0
    left_running: int = 0
    same_winner: bool = False
    same_trials: bool = False
    drivers: int = 0
    felt: bool = False
    seconds: float = 0.0
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether no work was lost or repeated and the result equals that of an undisturbed sweep."""
        errors = self.lost + self.twice + self.doubled + self.missing + self.left_running
        return errors == 0 and self.same_winner and self.same_trials


@dataclass
class Attempt:
    """A sweep with its own name, storage and experiment.

    Attributes:
        rng: generator of the random moments.
        seen: every run that the ledger contained at some time, by key.
        felt: whether the fault had an effect so far.
    """

    cluster: LocalCluster
    name: str
    storage: Path
    features: Path
    rng: random.Random
    bank_store: str | None = None
    driver: subprocess.Popen[bytes] | None = None
    drivers: int = 0
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    felt: bool = False

    @property
    def directory(self) -> Path:
        """The directory of the sweep."""
        return self.storage / self.name

    @property
    def file(self) -> Path:
        """The path of the sweep file, which is written on every access."""
        path = self.cluster.place / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(self.document(), sort_keys=False))
        return path

    def document(self, **changed: Any) -> dict[str, Any]:
        """The content of the sweep file. Packs have one trial, so that there are many of them."""
        return {
            "version": 1,
            "name": self.name,
            "dataset": {"kind": "arrays", "path": str(self.features)},
            "method": "los",
            "training": {"epochs": 400},
            "search": {
                "trials": TRIALS,
                "proposal_batch": 4,
                "algorithm": {"kind": "tpe", "startup_trials": 4},
                "space": {
                    "method.smooth_factor": {"uniform": [0.1, 0.95]},
                    "method.lr": {"loguniform": [1e-3, 1e-1]},
                },
            },
            "selection": {"seeds": SEEDS, "finalists": FINALISTS, "extended_training": None},
            "resources": {"lanes_per_pack": SEEDS},
            "backend": {"kind": "ray", **({"bank_store": self.bank_store} if self.bank_store else {})},
            "tracking": {"uri": self.cluster.tracking_uri, "experiment": self.name},
            "storage": str(self.storage),
            **changed,
        }

    @property
    def log(self) -> Path:
        """The file with the output of all drivers."""
        return self.cluster.place / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Start or restart the driver."""
        self.drivers += 1
        log = self.log.open("ab")
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "sweeps", "run", str(self.file), "--json"],
            env=self.cluster.environment(),
            stdout=log,
            stderr=log,
            cwd=self.cluster.place,
        )
        threading.Thread(target=self._watch_progress, args=(self.driver,), daemon=True).start()

    def _watch_progress(self, driver: subprocess.Popen[bytes]) -> None:
        """Set `felt` once the progress of the driver contains an error; returns when the driver ends."""
        while driver.poll() is None:
            progress = read_progress(self.directory)
            if progress is not None:
                failures = progress.packs_lost + progress.packs_failed
                self.felt = self.felt or failures > 0 or progress.tracking_error != ""
            time.sleep(0.2)

    def wait_for_random_moment(self, timeout: float = 120.0) -> None:
        """Return at a random moment while packs are trained.

        Raises:
            RuntimeError: the driver ended before that moment.
        """
        packs, deadline = self.rng.randint(1, 9), time.monotonic() + timeout
        while len(pack_lines(self.directory)) < packs and time.monotonic() < deadline:
            assert self.driver is not None
            if self.driver.poll() is not None:
                raise RuntimeError(f"the driver ended with exit code {self.driver.returncode} before the fault")
            time.sleep(0.02)
        time.sleep(1.5 * self.rng.random())
        self.record_finished()

    def finish(self, timeout: float = 300.0) -> None:
        """Wait for the driver and restart it when it fails, like a job with retries."""
        for _ in range(MAX_ATTEMPTS):
            assert self.driver is not None
            try:
                code = self.driver.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill_driver()
                code = -9
            self.record_finished()
            if code == 0:
                return
            self.start()
        raise RuntimeError(f"the driver failed {MAX_ATTEMPTS} times; see {self.log}")

    def kill_driver(self) -> None:
        """Kill the driver and all of its child processes."""
        assert self.driver is not None
        try:
            processes = [*psutil.Process(self.driver.pid).children(recursive=True), psutil.Process(self.driver.pid)]
        except psutil.NoSuchProcess:
            processes = []
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.driver.wait()

    def record_finished(self) -> None:
        """Add all runs that are finished now to `seen`."""
        for run in run_lines(self.directory):
            self.seen.setdefault(run["key"], run)

    def count(self, expected: Mapping[str, Any], seconds: float) -> Count:
        """Evaluate the sweep against the result of an undisturbed sweep."""
        runs = run_lines(self.directory)
        by_key = {run["key"]: run for run in runs}
        result = json.loads((self.directory / "result.json").read_text())
        tracked = tracked_runs(self.cluster, self.name)
        keys = [run["key"] for run in tracked]
        return Count(
            runs=len(runs),
            lost=sum(by_key.get(key) != run for key, run in self.seen.items()),
            twice=len(runs) - len(by_key),
            doubled=len(keys) - len(set(keys)),
            missing=MLFLOW_RUNS - len(set(keys)),
            left_running=sum(run["status"] == "RUNNING" for run in tracked),
            same_winner=result["winner"] == expected["winner"],
            same_trials=result["trials"] == expected["trials"],
            drivers=self.drivers,
            felt=self.felt or self.drivers > 1,
            seconds=round(seconds, 1),
        )
