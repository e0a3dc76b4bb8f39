"""What a sweep will cost before a cluster is rented: trials, runs, packs, memory and time, nothing trained.

Loads the data, or where it is not here takes its published counts; builds the (untrained) backbone and counts its
operations. Time is an estimate: operations over a rate, which for the CPU is this machine's matrix product and for a
GPU what the user says or `GPU_TFLOPS`. `sweeps.reporting.planned` shows it.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch

from lt_train.backbones.flops import forward_operations
from lt_train.core.errors import DataError, UserError
from lt_train.core.io import fingerprint
from lt_train.datasets.base import FeatureData, ImageData
from lt_train.retrain.base import Halving, Run
from sweeps.analysis.plan import Plan
from sweeps.config.methods import Candidate
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import SearchSize, baseline_trials, search_size, search_sizes
from sweeps.experiment.packing import PackSize, evenly
from sweeps.experiment.prepare import check_packs

__all__ = ["GPU_TFLOPS", "Plan", "plan"]

EFFICIENCY = 0.55
"""Share of the matrix product's rate that re-training and evaluation reach, from runs on 2 cores (`make bench`)."""

GPU_TFLOPS = 20.0
"""What a GPU is taken to reach in convolutions, in 10^12 operations a second: some 800 images a second in training a
ResNet-50. An assumption, since no two GPUs and networks agree; `--tflops` says another."""

STEP_SECONDS = 5e-4
"""What a step of re-training is taken to cost a GPU at least: some fifty kernels, started one after another."""


def plan(spec: SweepSpec, tflops: float | None = None) -> Plan:
    """Count and estimate.

    Args:
        spec: the sweep.
        tflops: 10^12 operations a second that the device reaches; None for `GPU_TFLOPS` where packs are trained on
            GPUs, and for what this machine's matrix product reaches elsewhere.

    Raises:
        UserError: the data is missing and nobody published how much there is, or it cannot be cut as asked, or needs a
            backbone that is not given.
    """
    data, missing = _data(spec)
    stage1: int | None = None
    features: int | None = None
    if isinstance(data, FeatureData):
        views, dim = int(data.train.inputs.shape[0]), int(data.train.inputs.shape[-1])
        test_views, number = int(data.test.inputs.shape[0]), data.train.inputs.element_size()
    else:
        if spec.backbone is None:
            raise UserError(f"dataset {spec.dataset.kind} holds images; say which backbone turns them into features")
        network, dim = spec.backbone.build(int(data.train.inputs.shape[1]))
        views = spec.features.views
        flip = data.augmentation.flip if spec.features.test_flip is None else spec.features.test_flip
        test_views, number = 1 + flip, getattr(torch, spec.features.dtype).itemsize
        _, *shape = data.train.inputs.shape
        image = forward_operations(network, (shape[0], shape[1], shape[2])) + 2 * dim * data.num_classes
        if spec.backbone.checkpoint is None and spec.stage1 is not None:
            # Forward, and twice as much backward; the test set is looked at once.
            stage1 = image * (3 * spec.stage1.epochs * len(data.train) + len(data.test))
        features = image * (views * len(data.train) + test_views * (len(data.val or ()) + len(data.test)))
    size = PackSize(spec.resources, spec.search.early_stopping, data.num_classes, dim)
    check_packs(spec, size)
    val = len(data.val) if data.val else 0
    sizes = search_size(spec)
    searches = [_search(spec, size, candidate, own) for candidate, own in search_sizes(spec)]
    largest = max(searches, key=lambda search: search.lanes * size.run_bytes(search.run))
    # Forward and weight gradient in training, forward in evaluation; two operations a product.
    image = 2 * dim * data.num_classes
    epochs, whole = sum(search.epochs for search in searches), sum(search.whole for search in searches)
    baselines = [trial for trial in baseline_trials(spec) if trial.method.trains]
    longer_epochs, longer_packs = _longer(spec, size, searches, sizes.extended_runs)
    beside = sum(search.finalist_epochs for search in searches) + sizes.extended_runs * longer_epochs
    beside += sum(len(trial.seeds) * trial.training.epochs for trial in baselines)
    operations = (epochs + beside) * image * (2 * len(data.train) + val + len(data.test))
    pack_epochs = [
        own.run.training.epochs * (sum(map(len, own.packs)) + own.finalist_packs) for own in searches if own.whole
    ]
    pack_epochs += [*(trial.training.epochs for trial in baselines), longer_epochs * longer_packs]
    steps = math.ceil(len(data.train) / spec.training.batch_size) * sum(pack_epochs)
    rates = _rates(spec, tflops)
    document, trained_on = spec.resolved(), spec.dataset.identity()
    return Plan(
        methods={candidate.name: own.trials for candidate, own in search_sizes(spec)},
        trials=sizes.trials,
        batches=max(len(search.packs) for search in searches),
        seeds=spec.selection.seeds,
        search_runs=sizes.search_runs,
        baseline_runs=sizes.baseline_runs,
        finalist_runs=sizes.finalist_runs,
        extended_runs=sizes.extended_runs,
        extended_factor=spec.selection.extended_training
        if spec.selection.extended_training and sizes.extended_runs
        else 0,
        packs=sum(sum(map(len, search.packs)) + search.finalist_packs for search in searches)
        + len(spec.baselines)
        + longer_packs,
        packs_per_batch=sum(max(map(len, search.packs)) for search in searches),
        lanes_per_pack=largest.lanes,
        pack_sizes=size.told(largest.run, largest.lanes),
        run_bytes=size.run_bytes(largest.run),
        pack_bytes=largest.lanes * size.run_bytes(largest.run),
        train_images=len(data.train),
        val_images=val,
        test_images=len(data.test),
        classes=data.num_classes,
        feature_dim=dim,
        views=views,
        bank_bytes=number * dim * (views * len(data.train) + test_views * (val + len(data.test))),
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
    """The data, or as much of it as was published, with a note that says so."""
    try:
        return spec.dataset.load(), []
    except DataError as error:
        published = spec.dataset.as_published()
        if published is None:
            raise
        return published, [f"the data is not here, and is counted as it was published: {error}"]


@dataclass(frozen=True)
class _Rates:
    """Operations a second of what the sweep runs on: the backbone's, the heads', and what a step costs at least."""

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
    """What is searched and keeps trials out of one another's packs, which are not counted by it."""
    static = {
        path: None
        for candidate in spec.candidates()
        for path in candidate.space
        if path.removeprefix("method.") not in candidate.method.lane_values()
    }
    if not static:
        return []
    return [f"trials that differ in {', '.join(static)} share no pack: there will be more and smaller packs than this"]


@dataclass(frozen=True)
class _Search:
    """What one candidate's search comes to.

    Attributes:
        run: any run of it.
        packs: the runs of each pack, by proposal batch.
        finalist_packs: how many.
        epochs: trained in the search, of all runs together; without a scheduler they would be `whole`.
        finalist_epochs: of all finalists together.
    """

    run: Run
    packs: list[list[int]]
    finalist_packs: int
    epochs: int
    whole: int
    finalist_epochs: int

    @property
    def lanes(self) -> int:
        """Runs of the largest pack."""
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
        epochs=sum(_epochs(count, seeds, epochs, halving) for generation_packs in packs for count in generation_packs),
        whole=own.search_runs * epochs,
        finalist_epochs=own.finalist_runs * epochs,
    )


def _longer(spec: SweepSpec, size: PackSize, searches: list[_Search], runs: int) -> tuple[int, int]:
    """Epochs of a run that repeats the winner several times as long, at most, and the packs of those runs."""
    if spec.selection.extended_training is None or not runs:
        return 0, 0
    longest = max((search.run for search in searches if search.whole), key=lambda run: run.training.epochs)
    return spec.selection.extended_training * longest.training.epochs, len(_packs(size.lanes(longest), 1, runs))


def _packs(lanes: int, trials: int, seeds: int) -> list[int]:
    """The runs of each pack, as `sweeps.experiment.packing` makes them where no searched value is static."""
    if lanes < seeds:
        return evenly(trials * seeds, lanes)
    return [seeds * count for count in evenly(trials, lanes // seeds)]


def _epochs(runs: int, seeds: int, epochs: int, halving: Halving | None) -> int:
    """Epochs that the runs of a pack are trained for, together."""
    if halving is None:
        return runs * epochs
    total, done, trials = 0, 0, runs // seeds
    for rung in halving.rungs:
        total += trials * (rung - done)
        trials, done = math.ceil(trials / halving.factor), rung
    return seeds * (total + trials * (epochs - done))


@functools.cache
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
