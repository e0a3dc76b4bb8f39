"""What a sweep will cost before a cluster is rented: trials, runs, packs, memory and time, nothing trained.

Loads the data and builds the (untrained) backbone for their shapes; measures this machine's matrix product.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lt_train.datasets.base import FeatureData
from lt_train.errors import UserError
from lt_train.retrain.base import Run
from sweeps.packing import pack_runs
from sweeps.schedule import search_size
from sweeps.spec import SweepSpec

__all__ = ["Plan", "plan"]

EFFICIENCY = 0.35
"""Share of the matrix product's rate that re-training reaches, from runs on 2 cores; the rest is memory traffic."""


@dataclass(frozen=True)
class Plan:
    """What a sweep amounts to. Memory in bytes; time in seconds of one worker of this machine, stage 1 not included."""

    trials: int
    generations: int
    seeds: int
    search_runs: int
    baseline_runs: int
    finalist_runs: int
    packs: int
    packs_per_generation: int
    lanes_per_pack: int
    train_images: int
    val_images: int
    test_images: int
    classes: int
    feature_dim: int
    views: int
    bank_bytes: int
    pack_bytes: int
    train_seconds: float
    notes: tuple[str, ...]

    @property
    def runs(self) -> int:
        """Runs in all."""
        return self.search_runs + self.baseline_runs + self.finalist_runs

    def document(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        return asdict(self) | {"runs": self.runs}


def plan(spec: SweepSpec) -> Plan:
    """Count and estimate.

    Raises:
        UserError: the data is missing, cannot be cut as asked, or needs a backbone that is not given.
    """
    data = spec.dataset.load()
    if isinstance(data, FeatureData):
        views, dim = int(data.train.inputs.shape[0]), int(data.train.inputs.shape[-1])
        test_views = int(data.test.inputs.shape[0])
    else:
        if spec.backbone is None:
            raise UserError(f"dataset {spec.dataset.kind} holds pictures; say which backbone turns them into features")
        views, (_, dim) = spec.features.views, spec.backbone.build(int(data.train.inputs.shape[1]))
        flip = data.augmentation.flip if spec.features.test_flip is None else spec.features.test_flip
        test_views = 1 + flip
    val = len(data.val) if data.val else 0
    sizes = search_size(spec)
    per_generation = [spec.search.generation] * (sizes.trials // spec.search.generation)
    if sizes.trials % spec.search.generation:
        per_generation.append(sizes.trials % spec.search.generation)
    packs = [_packs(spec, trials) for trials in per_generation]
    lanes = min(spec.resources.lanes_per_pack, max(per_generation) * spec.selection.seeds)
    head = 4 * dim * data.num_classes
    trained = sizes.search_runs + sizes.finalist_runs + sizes.baseline_runs
    # Forward and weight gradient in training, forward in evaluation of every epoch; two operations a product.
    operations = spec.training.epochs * dim * data.num_classes * (4 * len(data.train) + 2 * (val + len(data.test)))
    return Plan(
        trials=sizes.trials,
        generations=len(per_generation),
        seeds=spec.selection.seeds,
        search_runs=sizes.search_runs,
        baseline_runs=sizes.baseline_runs,
        finalist_runs=sizes.finalist_runs,
        packs=sum(packs) + _packs(spec, min(spec.selection.finalists, sizes.trials)) + len(spec.baselines),
        packs_per_generation=max(packs),
        lanes_per_pack=lanes,
        train_images=len(data.train),
        val_images=val,
        test_images=len(data.test),
        classes=data.num_classes,
        feature_dim=dim,
        views=views,
        bank_bytes=4 * dim * (views * len(data.train) + test_views * (val + len(data.test))),
        # Weights, momentum and kept weights of every lane.
        pack_bytes=3 * lanes * head,
        train_seconds=trained * operations / (EFFICIENCY * _matmul_rate(spec.resources.cpus_per_pack)),
        notes=data.notes,
    )


def _packs(spec: SweepSpec, trials: int) -> int:
    runs = [Run(spec.method, spec.training, seed) for _ in range(trials) for seed in range(spec.selection.seeds)]
    return len(pack_runs("plan", runs, spec.selection.epoch_rule(), spec.resources.lanes_per_pack))


def _matmul_rate(threads: int) -> float:
    """Operations a second of this machine's float32 matrix product with `threads` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(64, 512), torch.randn(512, 1024)
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * 64 * 512 * 1024 / best
