"""One sweep on a cluster that something happens to: its file, its driver, and what is counted in the end.

Nothing is taken from a log: lost and doubled work is read off the ledger, MLflow is asked over its API, and the result
is compared with that of an undisturbed sweep, field for field.
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
from support.ledgers import pack_lines
from support.tracked import tracked_runs
from support.world import World

from sweeps.store.status import read_progress

__all__ = ["Attempt", "Count"]

TRIALS, SEEDS, FINALISTS = 12, 2, 2
MLFLOW_RUNS = 1 + 2 + TRIALS + FINALISTS
"""Parent, baselines vanilla and ce, trials, finalists."""

TRIES = 6
"""How often a driver that failed is started again, as a job's retries do."""


@dataclass
class Count:
    """What one disturbed sweep came to; all from `lost` to `left_running` should be 0.

    Attributes:
        runs: finished, as the ledger has it.
        lost: finished at some moment, and not there or not the same in the end.
        twice: trained again though they were finished.
        doubled: MLflow runs that there are two of.
        missing: MLflow runs that there should be.
        left_running: MLflow runs that nobody closed.
        drivers: how many it took.
        felt: whether the fault left a trace: a driver more, a pack that was lost or failed, a call to tracking that
            failed, a node that took a pack. A fault in a moment when nobody needs the part is not felt.
        note: the error, if it came to nothing.
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
    def sound(self) -> bool:
        """Whether nothing was lost, nothing done twice, and the result is that of an undisturbed sweep."""
        wrong = self.lost + self.twice + self.doubled + self.missing + self.left_running
        return wrong == 0 and self.same_winner and self.same_trials


@dataclass
class Attempt:
    """A sweep of its own name, storage and experiment.

    Attributes:
        chance: where the moment of the fault comes from.
        seen: every run that was in the ledger at some moment, by key.
        felt: whether the fault left a trace so far.
    """

    world: World
    name: str
    storage: Path
    features: Path
    chance: random.Random
    bank_store: str | None = None
    driver: subprocess.Popen[bytes] | None = None
    drivers: int = 0
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    felt: bool = False

    @property
    def directory(self) -> Path:
        """Of the sweep."""
        return self.storage / self.name

    @property
    def file(self) -> Path:
        """The sweep file, written when it is asked for."""
        path = self.world.place / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(self.document(), sort_keys=False))
        return path

    def document(self, **changed: Any) -> dict[str, Any]:
        """The sweep: packs of one trial, so that there are many moments."""
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
            "tracking": {"uri": self.world.tracking_uri, "experiment": self.name},
            "storage": str(self.storage),
            **changed,
        }

    @property
    def log(self) -> Path:
        """What its drivers have said."""
        return self.world.place / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Start a driver, or start it again."""
        self.drivers += 1
        log = self.log.open("ab")
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "sweeps.cli.main", "run", str(self.file), "--json"],
            env=self.world.environment(),
            stdout=log,
            stderr=log,
            cwd=self.world.place,
        )
        threading.Thread(target=self._feel, args=(self.driver,), daemon=True).start()

    def _feel(self, driver: subprocess.Popen[bytes]) -> None:
        """Watch what the driver shows of its troubles, as long as it lives."""
        while driver.poll() is None:
            progress = read_progress(self.directory)
            if progress is not None:
                trouble = progress.packs_lost + progress.packs_failed
                self.felt = self.felt or trouble > 0 or progress.tracking_trouble != ""
            time.sleep(0.2)

    def wait_for_a_moment(self, timeout: float = 120.0) -> None:
        """Return at a moment of chance while packs are trained; the driver must be alive then."""
        packs, deadline = self.chance.randint(1, 9), time.monotonic() + timeout
        while len(pack_lines(self.directory)) < packs and time.monotonic() < deadline:
            assert self.driver is not None
            if self.driver.poll() is not None:
                raise RuntimeError(f"the driver ended with {self.driver.returncode} before anything happened to it")
            time.sleep(0.02)
        time.sleep(1.5 * self.chance.random())
        self.look()

    def finish(self, timeout: float = 300.0) -> None:
        """Wait for the driver, and start it again as often as it fails, as a retried job does."""
        for _ in range(TRIES):
            assert self.driver is not None
            try:
                code = self.driver.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill_driver()
                code = -9
            self.look()
            if code == 0:
                return
            self.start()
        raise RuntimeError(f"the driver failed {TRIES} times; see {self.name}.log")

    def kill_driver(self) -> None:
        """The driver and all it has started, at once."""
        assert self.driver is not None
        try:
            everyone = [*psutil.Process(self.driver.pid).children(recursive=True), psutil.Process(self.driver.pid)]
        except psutil.NoSuchProcess:
            everyone = []
        for process in everyone:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.driver.wait()

    def look(self) -> None:
        """Remember what is finished now."""
        for line in pack_lines(self.directory):
            for run in line["runs"]:
                self.seen.setdefault(run["key"], run)

    def count(self, expected: Mapping[str, Any], seconds: float) -> Count:
        """What came of it, against the result of an undisturbed sweep."""
        runs = [run for line in pack_lines(self.directory) for run in line["runs"]]
        by_key = {run["key"]: run for run in runs}
        result = json.loads((self.directory / "result.json").read_text())
        tracked = tracked_runs(self.world, self.name)
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
