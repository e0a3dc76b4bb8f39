"""Part (f): the report of a large sweep, as one types it: `lt-sweep report`, in a process of its own.

The sweep is whole but for the training: features of the shape, the driver's own search, ledger and result, and in place
of every run's result what it might have been. Its report has every figure, so that none is spared.
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
    """`report_seconds` and `report_mib`, of `report_trials` trials with `report_seeds` seeds each."""
    with tempfile.TemporaryDirectory() as scratch:
        place = _sweep(settings, Path(scratch))
        before, start = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "sweeps.cli.main", "report", str(place), "--out", f"{scratch}/report"]
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


def _sweep(settings: Settings, scratch: Path) -> Path:
    """The directory of a sweep that trained nothing."""
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
    with mock.patch("sweeps.backends.inline.fused.fit", _untrained):
        sweeps.run(spec)
    return Path(spec.storage) / spec.name


def _untrained(bank: FeatureBank, runs: Sequence[Run], *_: Any) -> list[RunResult]:
    chance = np.random.default_rng([run.seed for run in runs])
    return [_result(run, bank, chance) for run in runs]


def _result(run: Run, bank: FeatureBank, chance: np.random.Generator) -> RunResult:
    """Good near one learning rate, so that there is something to find; the head is that of stage 1, a little moved."""
    assert bank.head is not None
    epochs = run.training.epochs if run.method.trains else 1
    values = run.method.lane_values()
    good = -abs(np.log10(values["lr"]) + 3) / 10 if "lr" in values else -0.1
    curve = (0.5 + good + 0.01 * chance.random((epochs, 4))).astype(np.float32)
    tables = [chance.random(bank.num_classes).astype(np.float32) + 0.1 for _ in range(3)]
    weight, bias = (part.numpy() for part in bank.head)
    moved = weight + 0.1 * chance.standard_normal(weight.shape, dtype=np.float32) * run.method.trains
    kept = SelectedHead(epochs - 1, *tables, {"weight": moved, "bias": bias})
    return RunResult(None if bank.val is None else curve, curve, curve[:, 0], kept)
