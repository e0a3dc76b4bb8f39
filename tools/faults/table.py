"""Runs the faults and collects their results."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults.attempt import Attempt, Count
from faults.rows import DISKS, ROWS
from support.cluster import ROOT, LocalCluster, SmallDisk
from support.features import write_features

__all__ = ["Table"]


class Table:
    """One cluster and the results of all faults that were run on it."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster, self.rng, self.seed = cluster, random.Random(seed), seed
        self.features = write_features(cluster.place / "features.npz")
        self.counts: dict[str, list[Count]] = {}
        self.expected = self._undisturbed()

    def run(self, row: str) -> Count:
        """Run a fault once and restore the cluster."""
        number = len(self.counts.setdefault(row, []))
        name = "fault-" + "".join(letter if letter.isalnum() else "-" for letter in row.lower()) + f"-{number}"
        storage, bank_store = self.cluster.place / "storage", None
        if row == "disk full on driver":
            storage = self.cluster.place / f"small-{number}"
            DISKS[storage] = SmallDisk(storage, "4m")
        if row == "disk full on worker":
            bank_store = f"s3://{self.cluster.s3.bucket}/banks"
            cache = self.cluster.place / "cache-0"
            DISKS[cache] = SmallDisk(cache, "1m") if cache not in DISKS else DISKS[cache]
            self._remove_banks(cache)
            DISKS[cache].fill()
        attempt = Attempt(self.cluster, name, storage, self.features, self.rng, bank_store)
        begin = time.monotonic()
        try:
            attempt.start()
            attempt.wait_for_random_moment()
            ROWS[row](attempt)
            attempt.finish()
            count = attempt.count(self.expected, time.monotonic() - begin)
        except Exception as error:
            attempt.kill_driver()
            log = attempt.log.read_text(errors="replace")[-3000:]
            count = Count(drivers=attempt.drivers, note=f"{type(error).__name__}: {error}; log of its drivers:\n{log}")
        self.counts[row].append(count)
        if row == "node added":
            self.cluster.workers.pop().stop()
        self.cluster.restore()
        return count

    def close(self) -> None:
        """Unmount all small file systems."""
        while DISKS:
            DISKS.popitem()[1].close()

    def document(self) -> dict[str, Any]:
        """The content of `latest.json`: one row per fault, and all of its repeats."""
        rows = []
        for row, counts in self.counts.items():
            rows.append(
                {
                    "row": row,
                    "repeats": len(counts),
                    "lost": sum(count.lost for count in counts),
                    "twice": sum(count.twice for count in counts),
                    "doubled": sum(count.doubled for count in counts),
                    "missing": sum(count.missing for count in counts),
                    "left_running": sum(count.left_running for count in counts),
                    "same_winner": sum(count.same_winner and count.same_trials for count in counts),
                    "felt": sum(count.felt for count in counts),
                    "runs": sum(count.runs for count in counts),
                    "drivers": sum(count.drivers for count in counts),
                    "seconds": [count.seconds for count in counts],
                }
            )
        return {
            "schema": 1,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "cores": os.cpu_count(),
            "nodes": 1 + len(self.cluster.workers),
            "seed": self.seed,
            "rows": rows,
            "repeats": {row: [asdict(count) for count in counts] for row, counts in self.counts.items()},
        }

    def _undisturbed(self) -> dict[str, Any]:
        """The result that every disturbed sweep must reach, computed in one process without Ray and MLflow."""
        one = Attempt(self.cluster, "undisturbed", self.cluster.place / "storage", self.features, self.rng)
        file = self.cluster.place / "undisturbed.yaml"
        file.write_text(json.dumps(one.document(backend="inline", tracking="none")))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "sweeps", "run", str(file), "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.cluster.place,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        result: dict[str, Any] = json.loads((one.directory / "result.json").read_text())
        return result

    @staticmethod
    def _remove_banks(cache: Path) -> None:
        for entry in cache.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
