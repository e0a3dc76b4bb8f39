"""Part (d): growth of time and memory of the fused engine, and the cost of the shapes of large datasets.

N (with the test set), D, K and the number of lanes are each measured at half, one and two times a base shape, in turns.
With linear growth, four times the size takes four times as long. Memory is the peak of a fresh process minus its memory
before training. The large shapes are reduced to fewer images and one epoch, and labelled as such.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from banks import generate, resized
from engines import fit, make_runs, plain_run
from measure import interleaved, matrix_product_rate, ratio, seconds_of, warm_up
from out_of_memory import out_of_memory
from piece import run_piece
from settings import PAPER_EPOCHS, Settings

from lt_train.retrain import fused

__all__ = ["growth", "peak_memory"]

FACTORS = (0.5, 1.0, 2.0)
LANE_FACTORS = (0.5, 1.0, 2.0, 4.0)


def growth(settings: Settings) -> dict[str, Any]:
    """`growth.{N,D,K,lanes}`, `memory`, `large` and `out_of_memory_bank_ratio`."""
    warm_up(settings.device)
    found: dict[str, Any] = {"growth": {}}
    timings: dict[str, Any] = {"growth": {}}
    for axis, sizes in _axes(settings).items():
        times = interleaved(
            {str(size): action for size, action in sizes.items()}, settings.repeats, settings.device, first=True
        )
        smallest, largest = min(sizes), max(sizes)
        found["growth"][axis] = ratio(times[str(largest)], times[str(smallest)]) / (largest / smallest)
        timings["growth"][axis] = {"seconds": times, "epochs": 1, "lanes": settings.trials * settings.seeds}
    timings["memory"] = _memory(settings)
    timings["large"] = [_large(settings, *case) for case in settings.large]
    found["out_of_memory_bank_ratio"], timings["out_of_memory_bank_ratio"] = out_of_memory(settings)
    return {"values": found, "timings": timings}


def _axes(settings: Settings) -> dict[str, dict[int, Callable[[], Any]]]:
    """By axis: size along the axis -> training to time."""

    def action(scaled: Settings) -> Callable[[], Any]:
        bank, runs = generate(scaled.shape), make_runs("los", scaled, epochs=1)
        return lambda: fit(fused, bank, runs, scaled)

    axes: dict[str, dict[int, Callable[[], Any]]] = {}
    for axis, field in (("N", "images"), ("D", "dim"), ("K", "classes")):
        shapes = [resized(settings.shape, **{field: factor}) for factor in FACTORS]
        axes[axis] = {getattr(shape, field): action(replace(settings, shape=shape)) for shape in shapes}
    trials = [round(settings.trials * factor) for factor in FACTORS]
    axes["lanes"] = {count * settings.seeds: action(replace(settings, trials=count)) for count in trials}
    return axes


def _memory(settings: Settings) -> dict[str, Any]:
    """Peak memory by number of lanes, each in a separate process; on a CPU, Linux only."""
    if torch.device(settings.device).type == "cpu" and not CLEAR_PEAK.exists():
        return {"bytes_by_lanes": {}, "not_measured": "this system cannot reset the peak memory of a process"}
    points: dict[str, Any] = {}
    for factor in LANE_FACTORS:
        trials = round(settings.trials * factor)
        points[str(trials * settings.seeds)] = run_piece("peak_memory", settings, trials=trials)
    return {"bytes_by_lanes": points, "of": "GPU memory" if settings.device != "cpu" else "the process"}


def peak_memory(settings: Settings, trials: int) -> dict[str, int]:
    """Memory of this fresh process, or of the CUDA device, before and at the peak of training `trials` x seeds."""
    bank, runs = generate(settings.shape), make_runs("los", replace(settings, trials=trials), epochs=1)
    warm_up(settings.device)
    if torch.device(settings.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(settings.device)
        before = torch.cuda.memory_allocated(settings.device)
        fit(fused, bank, runs, settings)
        return {"before": before, "peak": torch.cuda.max_memory_allocated(settings.device)}
    gc.collect()
    CLEAR_PEAK.write_text("5")
    before = _resident("VmRSS")
    fit(fused, bank, runs, settings)
    return {"before": before, "peak": _resident("VmHWM")}


CLEAR_PEAK = Path("/proc/self/clear_refs")
"""Writing `5` resets the peak of resident memory (`VmHWM`): generating a bank takes more than training on it."""


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


def _large(settings: Settings, shape: Any, images: int, trials: int, seeds: int) -> dict[str, Any]:
    """`los` on a large shape with fewer images, one epoch and few lanes, and one run of the plain loop."""
    reduced = resized(shape, images=images / shape.images)
    few = replace(settings, shape=reduced, trials=trials, seeds=seeds)
    bank, runs = generate(reduced), make_runs("los", few, epochs=1)
    rate = matrix_product_rate(settings.matrix_size, settings.device)
    plain = seconds_of(plain_run(bank, runs[0], few), settings.device)
    seconds = seconds_of(lambda: fit(fused, bank, runs, few), settings.device)
    achieved = reduced.operations(len(runs), 1) / seconds / 1e9
    whole = seconds / len(runs) * (shape.images / reduced.images) * PAPER_EPOCHS
    return {
        "shape": {"name": shape.name, "N": shape.images, "D": shape.dim, "K": shape.classes},
        "shortened": True,
        "images": reduced.images,
        "test_images": reduced.test_images,
        "epochs": 1,
        "lanes": len(runs),
        "fused_seconds": seconds,
        "plain_seconds_a_run": plain,
        "fused_over_plain": plain / (seconds / len(runs)),
        "gflops": achieved,
        "matrix_product_gflops": rate,
        "gemm_fraction": achieved / rate,
        "runs_per_hour_extrapolated": 3600 / whole,
    }
