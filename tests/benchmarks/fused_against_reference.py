"""How many runs a second the fused engine trains, against the plain reference loop; run by `make bench`.

Shapes of two real banks, filled with noise, as speed does not depend on values. Epochs are cut to 2, and both engines
train what `los` trains; the reference is timed on 2 runs, as it takes them one by one. With `--out` the numbers are
also written as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lt_train.datasets.longtail import class_sizes
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import TrainingSpec, parse_method
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Engine, Run

EPOCHS, BATCH_SIZE, TRIALS, SEEDS, REFERENCE_RUNS = 2, 64, 12, 5, 2

SHAPES = {
    # name: (n_max, imbalance ratio, K, D, test images)
    "CIFAR100-LT, IR 100": (500, 100.0, 100, 512, 10_000),
    "digits": (124, 10.0, 10, 64, 500),
}


def make_bank(n_max: int, ratio: float, classes: int, dim: int, test_images: int) -> FeatureBank:
    """Noise in the shape of a bank: one training view, two test views, no val."""
    stream = torch.Generator().manual_seed(0)
    counts = torch.tensor(class_sizes(n_max, ratio, classes))
    labels = torch.arange(classes).repeat_interleave(counts)
    test = EvalSet(torch.randn(2, test_images, dim, generator=stream), torch.arange(test_images) % classes)
    head = (torch.zeros(classes, dim), torch.zeros(classes))
    features = torch.randn(1, len(labels), dim, generator=stream)
    return FeatureBank("benchmark", features, labels, None, test, head, counts, counts)


def make_runs(epochs: int) -> list[Run]:
    """12 trials x 5 seeds, all lanes different."""
    methods = [
        parse_method({"kind": "los", "smooth_factor": 0.9 + 0.005 * trial, "lr": 1e-4 * 2**trial})
        for trial in range(TRIALS)
    ]
    training = TrainingSpec(epochs=epochs, batch_size=BATCH_SIZE)
    return [Run(method, training, seed) for method in methods for seed in range(SEEDS)]


def runs_per_second(engine: Engine, bank: FeatureBank, runs: Sequence[Run], device: str) -> float:
    """Timed once, after the engine has been warmed up on this bank."""
    started = time.perf_counter()
    results = engine(bank, runs, device)
    seconds = time.perf_counter() - started
    assert all(result.failure is None for result in results), "noise with these rates does not diverge"
    return len(runs) / seconds


def measure(name: str, device: str) -> dict[str, float | str]:
    """Both engines on one shape."""
    bank, runs = make_bank(*SHAPES[name]), make_runs(EPOCHS)
    # The first optimiser step of a process imports half of torch, and first calls allocate: neither is the engines'.
    reference.fit(make_bank(20, 1.0, 2, 4, 10), make_runs(1)[:1], device)
    fused.fit(bank, make_runs(1)[:SEEDS], device)
    slow = runs_per_second(reference.fit, bank, runs[:REFERENCE_RUNS], device)
    fast = runs_per_second(fused.fit, bank, runs, device)
    images, dim = bank.train_features.shape[1:]
    return {
        "bank": name,
        "shape": f"N={images} D={dim} K={bank.num_classes}",
        "reference_runs_per_second": slow,
        "fused_runs_per_second": fast,
        "ratio": fast / slow,
    }


def main() -> None:
    """Measure, print one table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="Runs a second of the fused engine against the reference loop.")
    parser.add_argument("--device", default="cpu", help="torch device, for example cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads (default: all cores)")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    rows = [measure(name, given.device) for name in SHAPES]
    table = Table(
        "bank",
        "shape",
        "reference, runs/s",
        "fused, runs/s",
        "ratio",
        title=f"los, batch {BATCH_SIZE}, {EPOCHS} epochs a run (shortened from 20)",
        caption=f"{REFERENCE_RUNS} reference runs, {TRIALS} trials x {SEEDS} seeds fused; "
        f"{given.device}, {given.threads} threads, torch {torch.__version__}",
    )
    for row in rows:
        rates = (f"{row[name]:.2f}" for name in ("reference_runs_per_second", "fused_runs_per_second"))
        table.add_row(str(row["bank"]), str(row["shape"]), *rates, f"{row['ratio']:.1f}x")
    Console(width=None if Console().is_terminal else 120).print(table)
    if given.out:
        document = {
            "epochs": EPOCHS,
            "batch_size": BATCH_SIZE,
            "device": given.device,
            "threads": given.threads,
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "rows": rows,
        }
        given.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
