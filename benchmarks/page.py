"""Part (f): `lt-sweep report` on a large sweep, in a separate process.

The sweep is real except for training: search, ledger and result are those of the driver, and plausible results replace
those of the runs. The report contains every figure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from banks import generate, write_npz
from settings import Settings

import sweeps
from lt_train.features.bank import FeatureBank
from lt_train.retrain.base import Run, RunResult, SelectedHead
from sweeps.config.spec import load_resolved

__all__ = ["report"]


def report(settings: Settings) -> dict[str, Any]:
    """`report_seconds` and `report_mib` for `report_trials` trials with `report_seeds` seeds each."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = _run_sweep(settings, Path(scratch))
        before, start = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "sweeps", "report", str(directory), "--out", f"{scratch}/report"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - start, os.times()
        size = (Path(scratch) / "report" / "index.html").stat().st_size
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "values": {"report_seconds": round(seconds, 2), "report_mib": round(size / 2**20, 3)},
        "timings": {
            "report": {
                "trials": settings.report_trials,
                "seeds": settings.report_seeds,
                "classes": settings.shape.classes,
                "test_images": settings.shape.test_images,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "bytes": size,
            }
        },
    }


def _run_sweep(settings: Settings, scratch: Path) -> Path:
    """Run a sweep without training; its directory."""
    write_npz(generate(settings.shape), scratch / "features.npz")
    spec = load_resolved(
        {
            "version": 1,
            "name": "large",
            "dataset": {"kind": "arrays", "path": str(scratch / "features.npz")},
            "method": "los",
            "search": {
                "trials": settings.report_trials,
                "algorithm": "random",
                "space": {
                    "method.smooth_factor": {"uniform": [0.5, 0.995]},
                    "method.lr": {"loguniform": [1e-5, 1e-1]},
                    "method.weight_decay": {"loguniform": [1e-6, 1e-1]},
                },
            },
            "selection": {"seeds": settings.report_seeds, "finalists": 3},
            "backend": "inline",
            "tracking": "none",
            "storage": str(scratch / "runs"),
        }
    )
    with mock.patch("lt_train.retrain.fused.fit", _simulated_fit):
        sweeps.run(spec)
    return Path(spec.storage) / spec.name


def _simulated_fit(bank: FeatureBank, runs: Sequence[Run], *_: Any) -> list[RunResult]:
    rng = np.random.default_rng([run.seed for run in runs])
    return [_simulated_result(run, bank, rng) for run in runs]


def _simulated_result(run: Run, bank: FeatureBank, rng: np.random.Generator) -> RunResult:
    """A plausible result: best near one learning rate; the head is that of stage 1 with noise."""
    assert bank.head is not None
    epochs = run.training.epochs if run.method.trains else 1
    values = run.method.lane_values()
    offset = -abs(np.log10(values["lr"]) + 3) / 10 if "lr" in values else -0.1
    curve = (0.5 + offset + 0.01 * rng.random((epochs, 4))).astype(np.float32)
    tables = [rng.random(bank.num_classes).astype(np.float32) + 0.1 for _ in range(3)]
    weight, bias = (part.numpy() for part in bank.head)
    moved = weight + 0.1 * rng.standard_normal(weight.shape, dtype=np.float32) * run.method.trains
    kept = SelectedHead(epochs - 1, *tables, {"weight": moved, "bias": bias})
    return RunResult(None if bank.val is None else curve, curve, curve[:, 0], kept)
