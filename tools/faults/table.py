"""Running rows of the fault table and writing down what came of them."""

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
from support.features import write_features
from support.world import ROOT, SmallDisk, World

__all__ = ["Table"]


class Table:
    """One world, and every row that is tried in it."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.chance, self.seed = world, random.Random(seed), seed
        self.features = write_features(world.place / "features.npz")
        self.counts: dict[str, list[Count]] = {}
        self.expected = self._undisturbed()

    def run(self, row: str) -> Count:
        """Try a row once, and mend the world."""
        number = len(self.counts.setdefault(row, []))
        name = "fault-" + "".join(letter if letter.isalnum() else "-" for letter in row.lower()) + f"-{number}"
        storage, bank_store = self.world.place / "storage", None
        if row == "disk full on driver":
            storage = self.world.place / f"small-{number}"
            DISKS[storage] = SmallDisk(storage, "4m")
        if row == "disk full on worker":
            bank_store = f"s3://{self.world.s3.bucket}/banks"
            cache = self.world.place / "cache-0"
            DISKS[cache] = SmallDisk(cache, "1m") if cache not in DISKS else DISKS[cache]
            self._forget_banks(cache)
            DISKS[cache].fill()
        attempt = Attempt(self.world, name, storage, self.features, self.chance, bank_store)
        begin = time.monotonic()
        try:
            attempt.start()
            attempt.wait_for_a_moment()
            ROWS[row](attempt)
            attempt.finish()
            count = attempt.count(self.expected, time.monotonic() - begin)
        except Exception as error:
            attempt.kill_driver()
            said = attempt.log.read_text(errors="replace")[-3000:]
            count = Count(drivers=attempt.drivers, note=f"{type(error).__name__}: {error}; its drivers said:\n{said}")
        self.counts[row].append(count)
        if row == "node added":
            self.world.workers.pop().stop()
        self.world.mend()
        return count

    def close(self) -> None:
        """Unmount what was mounted."""
        while DISKS:
            DISKS.popitem()[1].close()

    def document(self) -> dict[str, Any]:
        """What `latest.json` holds: a line a row, and every repeat behind it."""
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
            "nodes": 1 + len(self.world.workers),
            "seed": self.seed,
            "rows": rows,
            "repeats": {row: [asdict(count) for count in counts] for row, counts in self.counts.items()},
        }

    def _undisturbed(self) -> dict[str, Any]:
        """The result that every row has to come to, from one process without Ray or MLflow."""
        one = Attempt(self.world, "undisturbed", self.world.place / "storage", self.features, self.chance)
        file = self.world.place / "undisturbed.yaml"
        file.write_text(json.dumps(one.document(backend="inline", tracking="none")))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "sweeps.cli.main", "run", str(file), "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.world.place,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        result: dict[str, Any] = json.loads((one.directory / "result.json").read_text())
        return result

    @staticmethod
    def _forget_banks(cache: Path) -> None:
        for entry in cache.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
