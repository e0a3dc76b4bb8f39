"""Estimate the cost of a sweep without training anything: trials, runs, packs, memory and time.

Loads the data, or uses the published class counts of a dataset that is not on this machine, and counts the operations
of the untrained backbone. Time is the number of operations divided by a rate: on a CPU the measured rate of a matrix
product, on a GPU the value given by the user or `GPU_TFLOPS`.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch

from lt_train.backbones.layers import forward_flops
from lt_train.core.errors import DataError, UserError
from lt_train.core.io import fingerprint
from lt_train.datasets.base import FeatureData, ImageData
from lt_train.retrain.base import Halving, Run
from sweeps.analysis.result import Plan
from sweeps.config.methods import Candidate
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import SearchSize, baseline_trials, search_size, search_sizes
from sweeps.experiment.packing import PackSize, split_evenly
from sweeps.experiment.prepare import check_packs

__all__ = ["Plan", "plan"]

EFFICIENCY = 0.55
"""Fraction of a matrix product's rate that re-training and evaluation reach, measured on 2 cores (`make bench`)."""

GPU_TFLOPS = 20.0
"""Assumed rate of a GPU in convolutions, in 10^12 operations per second: about 800 images per second when training a
ResNet-50. It depends on the GPU and the network; `--tflops` sets another value."""

STEP_SECONDS = 5e-4
"""Assumed minimum time per re-training step on a GPU: about fifty kernels, launched one after another."""


def plan(spec: SweepSpec, tflops: float | None = None) -> Plan:
    """Estimate the cost of a sweep.

    Args:
        spec: the sweep.
        tflops: rate of the device in 10^12 operations per second; None for `GPU_TFLOPS` if packs are trained on GPUs,
            else for the measured rate of this machine.

    Raises:
        UserError: the data is missing and its class counts are not published, or the spec does not fit the data.
    """
    data, missing = _data(spec)
    stage1: int | None = None
    features: int | None = None
    if isinstance(data, FeatureData):
        views, dim = int(data.train.inputs.shape[0]), int(data.train.inputs.shape[-1])
        test_views, itemsize = int(data.test.inputs.shape[0]), data.train.inputs.element_size()
    else:
        if spec.backbone is None:
            raise UserError(f"dataset {spec.dataset.kind} contains images; set backbone to extract features")
        network, dim = spec.backbone.build(int(data.train.inputs.shape[1]))
        views = spec.features.views
        flip = data.augmentation.flip if spec.features.test_flip is None else spec.features.test_flip
        test_views, itemsize = 1 + flip, getattr(torch, spec.features.dtype).itemsize
        _, *shape = data.train.inputs.shape
        per_image = forward_flops(network, (shape[0], shape[1], shape[2])) + 2 * dim * data.num_classes
        if spec.backbone.checkpoint is None and spec.stage1 is not None:
            # A backward pass costs twice a forward pass; the test set is evaluated once.
            stage1 = per_image * (3 * spec.stage1.epochs * len(data.train) + len(data.test))
        features = per_image * (views * len(data.train) + test_views * (len(data.val or ()) + len(data.test)))
    size = PackSize(spec.resources, spec.search.early_stopping, data.num_classes, dim)
    check_packs(spec, size)
    val = len(data.val) if data.val else 0
    sizes = search_size(spec)
    searches = [_search(spec, size, candidate, own) for candidate, own in search_sizes(spec)]
    largest = max(searches, key=lambda search: search.lanes * size.run_bytes(search.run))
    epochs, whole = sum(search.epochs for search in searches), sum(search.whole for search in searches)
    baselines = [trial for trial in baseline_trials(spec) if trial.method.trains]
    extended_epochs, extended_packs = _extended(spec, size, searches, sizes.extended_runs)
    other_epochs = sum(search.finalist_epochs for search in searches) + sizes.extended_runs * extended_epochs
    other_epochs += sum(len(trial.seeds) * trial.training.epochs for trial in baselines)
    # Forward and weight gradient in training, forward in evaluation; two operations per product.
    operations = (epochs + other_epochs) * 2 * dim * data.num_classes * (2 * len(data.train) + val + len(data.test))
    pack_epochs = [
        own.run.training.epochs * (sum(map(len, own.packs)) + own.finalist_packs) for own in searches if own.whole
    ]
    pack_epochs += [*(trial.training.epochs for trial in baselines), extended_epochs * extended_packs]
    steps = math.ceil(len(data.train) / spec.training.batch_size) * sum(pack_epochs)
    rates = _rates(spec, tflops)
    document, trained_on = spec.resolved(), spec.dataset.identity()
    return Plan(
        methods={candidate.name: own.trials for candidate, own in search_sizes(spec)},
        trials=sizes.trials,
        proposal_batches=max(len(search.packs) for search in searches),
        seeds=spec.selection.seeds,
        search_runs=sizes.search_runs,
        baseline_runs=sizes.baseline_runs,
        finalist_runs=sizes.finalist_runs,
        extended_runs=sizes.extended_runs,
        extended_factor=(spec.selection.extended_training or 0) if sizes.extended_runs else 0,
        packs=sum(sum(map(len, search.packs)) + search.finalist_packs for search in searches)
        + len(spec.baselines)
        + extended_packs,
        packs_per_batch=sum(max(map(len, search.packs)) for search in searches),
        lanes_per_pack=largest.lanes,
        pack_sizes=size.describe(largest.run, largest.lanes),
        run_bytes=size.run_bytes(largest.run),
        pack_bytes=largest.lanes * size.run_bytes(largest.run),
        train_images=len(data.train),
        val_images=val,
        test_images=len(data.test),
        classes=data.num_classes,
        feature_dim=dim,
        views=views,
        bank_bytes=itemsize * dim * (views * len(data.train) + test_views * (val + len(data.test))),
        epochs_saved=1 - epochs / whole if whole else 0.0,
        device=rates.device,
        stage1_seconds=None if stage1 is None else stage1 / rates.network,
        feature_seconds=None if features is None else features / rates.network,
        train_seconds=max(operations / rates.heads, steps * rates.step_seconds),
        backbone=fingerprint([trained_on, document["backbone"], document["stage1"]]),
        bank=fingerprint([trained_on, document["backbone"], document["stage1"], document["features"]]),
        notes=(*missing, *data.notes, *_static_notes(spec)),
    )


def _data(spec: SweepSpec) -> tuple[ImageData | FeatureData, list[str]]:
    """The data, or its published class counts and a note about it."""
    try:
        return spec.dataset.load(), []
    except DataError as error:
        published = spec.dataset.as_published()
        if published is None:
            raise
        return published, [f"the data is missing, so its published class counts are used: {error}"]


@dataclass(frozen=True)
class _Rates:
    """Operations per second of the device for the backbone and for heads, and the minimum time per step."""

    device: str
    network: float
    heads: float
    step_seconds: float


def _rates(spec: SweepSpec, tflops: float | None) -> _Rates:
    if spec.resources.gpus_per_pack:
        rate = 1e12 * (GPU_TFLOPS if tflops is None else tflops)
        return _Rates(f"GPU at {rate / 1e12:g} TFLOP/s", rate, rate, STEP_SECONDS)
    if tflops is not None:
        return _Rates(f"worker at {tflops:g} TFLOP/s", 1e12 * tflops, EFFICIENCY * 1e12 * tflops, 0.0)
    heads = EFFICIENCY * _matmul_rate(spec.resources.cpus_per_pack)
    return _Rates("worker of this machine", _matmul_rate(torch.get_num_threads()), heads, 0.0)


def _static_notes(spec: SweepSpec) -> list[str]:
    """A note on searched fields that keep trials from sharing a pack; the number of packs does not account for them."""
    static = {
        path: None
        for candidate in spec.candidates()
        for path in candidate.space
        if path.removeprefix("method.") not in candidate.method.lane_values()
    }
    note = f"trials that differ in {', '.join(static)} share no pack, so there will be more and smaller packs"
    return [note] if static else []


@dataclass(frozen=True)
class _Search:
    """The cost of one candidate's search.

    Attributes:
        run: an example run.
        packs: number of runs of each pack, by proposal batch.
        finalist_packs: number of packs of finalists.
        epochs: epochs of the search, summed over runs.
        whole: the same without early stopping.
        finalist_epochs: epochs of the finalists, summed over runs.
    """

    run: Run
    packs: list[list[int]]
    finalist_packs: int
    epochs: int
    whole: int
    finalist_epochs: int

    @property
    def lanes(self) -> int:
        """Number of runs in the largest pack."""
        return max(map(max, self.packs))


def _search(spec: SweepSpec, size: PackSize, candidate: Candidate, own: SearchSize) -> _Search:
    run = Run(candidate.method, candidate.training, 0)
    seeds, batch = own.search_runs // own.trials, spec.search.proposal_batch
    trials = [min(batch, own.trials - first) for first in range(0, own.trials, batch)]
    packs = [_packs(size.lanes(run), count, seeds) for count in trials]
    epochs = run.training.epochs if run.method.trains else 0
    halving = spec.search.early_stopping.halving(run.training) if run.method.trains else None
    return _Search(
        run=run,
        packs=packs,
        finalist_packs=len(_packs(size.lanes(run), own.finalist_runs // seeds, seeds)),
        epochs=sum(_epochs(count, seeds, epochs, halving) for batch_packs in packs for count in batch_packs),
        whole=own.search_runs * epochs,
        finalist_epochs=own.finalist_runs * epochs,
    )


def _extended(spec: SweepSpec, size: PackSize, searches: list[_Search], runs: int) -> tuple[int, int]:
    """The maximum number of epochs per run of extended training, and the number of packs of those runs."""
    if spec.selection.extended_training is None or not runs:
        return 0, 0
    longest = max((search.run for search in searches if search.whole), key=lambda run: run.training.epochs)
    return spec.selection.extended_training * longest.training.epochs, len(_packs(size.lanes(longest), 1, runs))


def _packs(lanes: int, trials: int, seeds: int) -> list[int]:
    """The number of runs of each pack, as `pack_runs` groups them if no searched field is static."""
    if lanes < seeds:
        return split_evenly(trials * seeds, lanes)
    return [seeds * count for count in split_evenly(trials, lanes // seeds)]


def _epochs(runs: int, seeds: int, epochs: int, halving: Halving | None) -> int:
    """Epochs of a pack, summed over its runs."""
    if halving is None:
        return runs * epochs
    total, done, trials = 0, 0, runs // seeds
    for rung in halving.rungs:
        total += trials * (rung - done)
        trials, done = math.ceil(trials / halving.factor), rung
    return seeds * (total + trials * (epochs - done))


@functools.cache
def _matmul_rate(threads: int) -> float:
    """Operations per second of a float32 matrix product on this machine with `threads` threads."""
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
