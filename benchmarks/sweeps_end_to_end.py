"""Part (c): a sweep from process start to process end, against Ray Tune with one trial per run.

The sweep is `sweeps.run` with the Ray backend and MLflow on SQLite. The Ray Tune searches (`ray_tune_loop`) record
nothing. All train on the same generated bank and number of CPUs, and evaluate on the test set after every epoch. Ray
Tune runs fewer trials: the time per run, after the first run of every worker, is scaled to the number of runs of the
sweep, while startup and shutdown count once. The limit is the ratio that the hardware allows: only the matrix products
of the sweep remain, at the rate of a large product.
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

RUN_SWEEP = "import sys, sweeps; sweeps.run(sweeps.load_sweep(sys.argv[1]))"


def end_to_end(settings: Settings) -> dict[str, Any]:
    """`sweep_over_stock_tune`, `sweep_over_reused_actors`, `control_plane_fraction`."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_npz(generate(settings.shape), place / "bank.npz")
        runs = settings.sweep_trials * settings.sweep_seeds
        stock = _run_ray_tune("stock", settings.stock_trials, runs, settings, place)
        sweep = _run_sweep(settings, place)
        reused = _run_ray_tune("reused", settings.reused_trials, runs, settings, place)
    torch.set_num_threads(settings.threads)
    rate = matrix_product_rate(settings.matrix_size, "cpu")
    least = settings.shape.operations(runs, settings.sweep_epochs, evaluation=True) / rate / 1e9
    wall = sweep["seconds"]
    return {
        "values": {
            "sweep_over_stock_tune": stock["seconds_scaled"] / wall,
            "sweep_over_reused_actors": reused["seconds_scaled"] / wall,
            "sweep_over_stock_tune_limit": stock["seconds_scaled"] / least,
            "sweep_over_reused_actors_limit": reused["seconds_scaled"] / least,
            "control_plane_fraction": 1 - sweep["training_seconds"] / wall,
        },
        "timings": {
            "sweep": sweep,
            "stock_tune": stock,
            "reused_actors": reused,
            "matrix_product_gflops": rate,
            "least_seconds": least,
            "runs": runs,
            "epochs": settings.sweep_epochs,
            "shortened": settings.sweep_epochs < PAPER_EPOCHS,
        },
    }


def _run_sweep(settings: Settings, place: Path) -> dict[str, Any]:
    """Run the sweep; its wall time and the time of its phases."""
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_document(settings, place)))
    started, ended = _run([sys.executable, "-c", RUN_SWEEP, str(file)], place)
    directory = place / "runs" / "benchmark"
    result = json.loads((directory / "result.json").read_text())
    if result["runs"]["failed"]:
        raise RuntimeError(f"{result['runs']['failed']} runs of the sweep failed")
    lines = map(json.loads, (directory / "ledger.jsonl").read_text().splitlines())
    packs = [line for line in lines if line["event"] == "pack"]
    # The ledger records a pack when it returns; `seconds` is its training time until then.
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
            {"runs": pack["runs"], "start": start - started, "end": end - started}
            for pack, (start, end) in zip(packs, intervals, strict=True)
        ],
        "runs_trained": result["runs"]["finished"],
        "threads_a_pack": settings.threads,
        "seconds_in_result": result["seconds"],
    }


def sweep_document(settings: Settings, place: Path) -> dict[str, Any]:
    """The sweep file. Every setting that differs from its default matches the Ray Tune searches."""
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


def _run_ray_tune(mode: str, trials: int, runs: int, settings: Settings, place: Path) -> dict[str, Any]:
    """Run a Ray Tune search, with its time scaled to `runs` runs."""
    out = place / f"{mode}.json"
    program = str(Path(__file__).with_name("ray_tune_loop.py"))
    numbers = [settings.threads, trials, settings.sweep_seeds, settings.sweep_epochs, BATCH_SIZE]
    started, ended = _run([sys.executable, program, mode, str(place / "bank.npz"), *map(str, numbers), str(out)], place)
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
    """Seconds per run, and estimated seconds for `runs` runs.

    Args:
        completed: completion time of each run in seconds since process start; more runs than workers.
        seconds: wall time of the process.
        runs: number of runs to scale to.
        workers: number of parallel workers; the first run of each is not part of the rate.
    """
    first, *_, last = sorted(completed)[workers - 1 :]
    per_run = (last - first) / (len(completed) - workers)
    return {"seconds_a_run": per_run, "seconds_scaled": seconds + per_run * (runs - len(completed))}


def union_seconds(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of the intervals; packs that train in parallel count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _run(command: list[str], place: Path) -> tuple[float, float]:
    """Run a command in a clean environment; start and end time in seconds since 1970."""
    # Includes OMP_NUM_THREADS: if it is set, Ray does not set the threads of a worker to its number of CPUs.
    removed = ("TUNE_", "RAY_", "OMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    with (place / "log.txt").open("w+") as log:
        started = time.time()
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=place, check=False)
        ended = time.time()
        if done.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[1:3]} ended with exit code {done.returncode}:\n{log.read()[-3000:]}")
    return started, ended
