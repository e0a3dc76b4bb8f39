"""Part (c): a sweep from the start of its process to its end, against Ray Tune with a trial a run.

Ours is `sweeps.run` with the Ray backend and MLflow on SQLite; the others (`ray_tune_loop`) keep no records at all. All
train on the same generated bank, on as many CPUs, and evaluate on the test set after every epoch. Ray Tune runs fewer
trials: what a run adds, once every worker has had its first, is scaled to our number of runs; starting and ending
are counted once, as they are. A limit says what the machine allows: the ratio if nothing but the matrix products of our
runs remained, at the rate of a large one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from banks import generate, write_npz
from measure import matrix_product_rate
from settings import BATCH_SIZE, PAPER_EPOCHS, Settings

__all__ = ["end_to_end", "scaled", "sweep_document", "union_seconds"]

OURS = "import sys, sweeps; sweeps.run(sweeps.load(sys.argv[1]))"


def end_to_end(settings: Settings) -> dict[str, Any]:
    """`sweep_over_stock_tune`, `sweep_over_reused_actors`, `control_plane_fraction`."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_npz(generate(settings.shape), place / "bank.npz")
        runs = settings.sweep_trials * settings.sweep_seeds
        stock = _ray_tune("stock", settings.stock_trials, runs, settings, place)
        ours = _sweep(settings, place)
        reused = _ray_tune("reused", settings.reused_trials, runs, settings, place)
    torch.set_num_threads(settings.threads)
    rate = matrix_product_rate(settings.matrix_size, "cpu")
    least = settings.shape.operations(runs, settings.sweep_epochs, evaluation=True) / rate / 1e9
    wall = ours["seconds"]
    return {
        "values": {
            "sweep_over_stock_tune": stock["seconds_scaled"] / wall,
            "sweep_over_reused_actors": reused["seconds_scaled"] / wall,
            "sweep_over_stock_tune_limit": stock["seconds_scaled"] / least,
            "sweep_over_reused_actors_limit": reused["seconds_scaled"] / least,
            "control_plane_fraction": 1 - ours["training_seconds"] / wall,
        },
        "timings": {
            "sweep": ours,
            "stock_tune": stock,
            "reused_actors": reused,
            "matrix_product_gflops": rate,
            "least_seconds": least,
            "runs": runs,
            "epochs": settings.sweep_epochs,
            "shortened": settings.sweep_epochs < PAPER_EPOCHS,
        },
    }


def _sweep(settings: Settings, place: Path) -> dict[str, Any]:
    """Our side, and where its time went."""
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_document(settings, place)))
    started, ended = _process([sys.executable, "-c", OURS, str(file)], place)
    directory = place / "runs" / "benchmark"
    result = json.loads((directory / "result.json").read_text())
    if result["runs"]["failed"]:
        raise RuntimeError(f"{result['runs']['failed']} runs of the sweep failed")
    lines = map(json.loads, (directory / "ledger.jsonl").read_text().splitlines())
    packs = [line for line in lines if "pack" in line]
    # A pack is written down when it has come back; it was in training for `seconds` until then.
    intervals = [(pack["at_ms"] / 1000 - pack["seconds"], pack["at_ms"] / 1000) for pack in packs]
    training = union_seconds(intervals)
    first, last = min(start for start, _ in intervals), max(end for _, end in intervals)
    return {
        "seconds": ended - started,
        "training_seconds": training,
        "before_first_pack_seconds": first - started,
        "between_packs_seconds": last - first - training,
        "after_last_pack_seconds": ended - last,
        "packs": [
            {"runs": len(pack["runs"]), "start": start - started, "end": end - started}
            for pack, (start, end) in zip(packs, intervals, strict=True)
        ],
        "runs_trained": result["runs"]["finished"],
        "threads_a_pack": settings.threads,
        "seconds_in_result": result["seconds"],
    }


def sweep_document(settings: Settings, place: Path) -> dict[str, Any]:
    """The sweep file: every setting that is not its default is one that Ray Tune's side has too."""
    return {
        "version": 1,
        "name": "benchmark",
        "dataset": {"kind": "arrays", "path": str(place / "bank.npz"), "val_fraction": 0.0},
        "method": {"kind": "los"},
        "training": {"epochs": settings.sweep_epochs, "batch_size": BATCH_SIZE},
        "search": {
            "algorithm": "tpe",
            "trials": settings.sweep_trials,
            "proposal_batch": 12,
            "space": {
                "method.smooth_factor": {"uniform": [0.5, 0.995]},
                "method.lr": {"loguniform": [1e-5, 1e-1]},
                "method.weight_decay": {"loguniform": [1e-6, 1e-1]},
            },
        },
        "selection": {"on": "test", "seeds": settings.sweep_seeds, "objective": "mean", "extended_training": None},
        "baselines": [],
        "backend": "ray",
        "resources": {"cpus_per_pack": settings.threads},
        "tracking": {"uri": f"sqlite:///{place / 'mlflow.db'}"},
        "storage": str(place / "runs"),
    }


def _ray_tune(mode: str, trials: int, runs: int, settings: Settings, place: Path) -> dict[str, Any]:
    """Ray Tune's side, scaled to `runs` runs."""
    out = place / f"{mode}.json"
    program = str(Path(__file__).with_name("ray_tune_loop.py"))
    numbers = [settings.threads, trials, settings.sweep_seeds, settings.sweep_epochs, BATCH_SIZE]
    started, ended = _process(
        [sys.executable, program, mode, str(place / "bank.npz"), *map(str, numbers), str(out)], place
    )
    completed = [at - started for at in json.loads(out.read_text())["completed"]]
    return {
        "seconds": ended - started,
        "completed_at": completed,
        "runs_measured": len(completed),
        "shortened": len(completed) < runs,
        "workers": settings.threads,
        "threads_a_worker": 1,
        **scaled(completed, ended - started, runs, workers=settings.threads),
    }


def scaled(completed: Sequence[float], seconds: float, runs: int, workers: int) -> dict[str, float]:
    """What `runs` runs would have taken.

    Args:
        completed: seconds from the start of the process at which each run was complete; more runs than workers.
        seconds: from start to end of the process.
        runs: how many there should have been.
        workers: how many ran at once; the first run of each is not counted for the pace.
    """
    first, *_, last = sorted(completed)[workers - 1 :]
    pace = (last - first) / (len(completed) - workers)
    return {"seconds_a_run": pace, "seconds_scaled": seconds + pace * (runs - len(completed))}


def union_seconds(intervals: Sequence[tuple[float, float]]) -> float:
    """How long at least one of the intervals lasted: packs side by side train at the same time."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _process(command: list[str], place: Path) -> tuple[float, float]:
    """Run to the end, as from a fresh shell; when it started and ended, seconds since 1970."""
    # OMP_NUM_THREADS too: Ray gives a worker the threads of its CPUs only where nobody has said otherwise.
    ours = ("TUNE_", "RAY_", "OMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with (place / "log.txt").open("w+") as log:
        started = time.time()
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=place, check=False)
        ended = time.time()
        if done.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[1:3]} ended with {done.returncode}:\n{log.read()[-3000:]}")
    return started, ended
