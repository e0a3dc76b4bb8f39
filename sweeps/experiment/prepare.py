"""Prepare the feature bank of a sweep: load the data, train the backbone, extract features.

Trained backbones and banks are kept in `<storage>/cache`, addressed by a fingerprint of everything that determines
them, and shared by all sweeps of the storage. An existing one is verified and reused. One that is damaged or belongs to
another fingerprint is renamed to `<name>.damaged`, with a warning, and created again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from lt_train.backbones.base import BackboneSpec
from lt_train.backbones.checkpoint import ImageSource, load_checkpoint
from lt_train.core.code import code_of
from lt_train.core.device import check_device
from lt_train.core.errors import BankError, CheckpointError, UserError, first_line
from lt_train.core.io import fingerprint, set_aside
from lt_train.core.text import progress
from lt_train.datasets.base import FeatureData, ImageData
from lt_train.features.bank import FeatureBank
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.shards import Extractor, Shard, ShardResult
from lt_train.metrics import ACCURACIES, split_masks
from lt_train.pretrain.train import train_backbone
from lt_train.retrain.base import Run, check_runs, score_column
from sweeps.config.interfaces import BackboneJob
from sweeps.config.spec import SweepSpec
from sweeps.experiment.packing import PackSize
from sweeps.store.layout import CACHE

__all__ = ["Prepared", "check_packs", "open_cached_bank", "prepare", "prepare_all"]

logger = logging.getLogger(__name__)

CachedT = TypeVar("CachedT")


@dataclass(frozen=True)
class Prepared:
    """A sweep's feature bank, and the source of its images; None if the dataset contains features or is missing."""

    bank: FeatureBank
    images: ImageSource | None = None


OnProgress = Callable[[str], None]
"""Called with one line, such as `features on cpu: 300 of 1000 images`."""


def prepare(spec: SweepSpec) -> FeatureBank:
    """The bank of `prepare_all`."""
    return prepare_all(spec).bank


def prepare_all(spec: SweepSpec, on_progress: OnProgress | None = None) -> Prepared:
    """Open the sweep's feature bank. Trains the backbone and extracts features unless the storage has them.

    Raises:
        UserError: the data, the checkpoint or the bank is invalid, or the sweep cannot run on this bank.
        StorageError: the disk is full.
    """
    device = _device(spec)
    data = spec.dataset.load()
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    for method in [candidate.method for candidate in spec.candidates()] + list(spec.baselines):
        if reason := method.incompatibility(counts):  # checked before the backbone is trained
            raise UserError(f"method {method.kind}: {reason}")
    checkpoint = _backbone(spec, data, device, on_progress)
    bank = _verified(_features(spec, data, checkpoint, device, on_progress), open_bank)
    if bank is None:
        bank = open_bank(_features(spec, data, checkpoint, device, on_progress))
    _check(spec, bank)
    if checkpoint is None:
        return Prepared(bank)
    _, channels, height, width = data.train.inputs.shape
    return Prepared(bank, ImageSource(checkpoint, (channels, height, width)))


def _verified(path: Path, read: Callable[[Path], CachedT]) -> CachedT | None:
    """Read a file or directory of the cache; if it is damaged, set it aside with a warning and return None.

    Raises:
        StorageError: it is damaged and cannot be renamed.
    """
    before = _inode(path)
    try:
        return read(path)
    except (CheckpointError, BankError) as error:
        if _inode(path) == before:  # another sweep of the storage may have created it again
            reason = first_line(error).rpartition("; ")[0] or first_line(error)  # without what to do about it
            logger.warning("%s; it is kept as %s and created again", reason, set_aside(path).name)
    return None


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _device(spec: SweepSpec) -> str:
    """The device of this process for the backbone: that of the packs, or the CPU if only other machines have GPUs.

    Raises:
        UserError: packs are trained on GPUs of this machine, and it has none.
    """
    if not spec.resources.gpus_per_pack:
        return "cpu"
    if spec.backend.trains_elsewhere() and not torch.cuda.is_available():
        return "cpu"
    check_device("cuda")
    return "cuda"


def _backbone(
    spec: SweepSpec, data: ImageData | FeatureData, device: str, on_progress: OnProgress | None
) -> Path | BackboneSpec | None:
    """The given backbone, or the checkpoint of one trained by the stage-1 recipe; None for a dataset of features."""
    if isinstance(data, FeatureData):
        if spec.backbone is not None:
            raise UserError(f"dataset {spec.dataset.kind} contains features; remove backbone and stage1")
        return None
    if spec.backbone is None:
        raise UserError(f"dataset {spec.dataset.kind} contains images; set backbone to extract features")
    if spec.backbone.checkpoint is not None:
        return spec.backbone
    assert spec.stage1 is not None, "a spec without checkpoint has a stage-1 recipe"
    workers = spec.resources.stage1_workers
    address = fingerprint(
        {
            "train": data.train.digest(),
            "augmentation": data.augmentation.model_dump(),
            "mean": data.mean,
            "std": data.std,
            "backbone": spec.backbone.model_dump(mode="json"),
            "stage1": spec.stage1.identity(workers=workers),
            # Several workers sum in another order and have their own batch norm statistics, which changes the weights.
            **({"workers": workers} if workers > 1 else {}),
            **({"code": code} if (code := code_of([spec.backbone, spec.stage1])) else {}),
        }
    )
    out = Path(spec.storage) / CACHE / "checkpoints" / f"{spec.backbone.kind}-{address[:16]}.safetensors"
    if not out.exists() or _verified(out, partial(load_checkpoint, address=address)) is None:
        about = {"dataset": spec.dataset.model_dump(mode="json"), "address": address}
        where = device if workers == 1 else f"{workers} workers"
        title = f"stage 1 ({spec.backbone.kind}, {spec.stage1.kind}) on {where}"
        with progress(title, "epoch", on_progress) as report:
            if workers == 1:
                train_backbone(data, spec.backbone, spec.stage1, out, device=device, about=about, report=report)
            else:
                job = BackboneJob(data, spec.dataset, spec.backbone, spec.stage1, about)
                cpus, gpus = spec.resources.cpus_per_pack, spec.resources.gpus_per_pack
                spec.backend.train_backbone(job, out, workers=workers, cpus=cpus, gpus=gpus, report=report)
    return out


def _features(
    spec: SweepSpec,
    data: ImageData | FeatureData,
    checkpoint: Path | BackboneSpec | None,
    device: str,
    on_progress: OnProgress | None,
) -> Path:
    """The path of the bank, extracted in this process or by `extract_workers` others."""
    store, count = Path(spec.storage) / CACHE / "banks", spec.resources.extract_workers
    cpus, gpus = spec.resources.cpus_per_pack, spec.resources.gpus_per_pack

    def workers(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        # Started on demand, since an existing bank needs no workers.
        with spec.backend.extractors(count, cpus=cpus, gpus=gpus) as extract:
            yield from extract(extractor, wanted)

    title, options = f"features on {device}", dict[str, Any]()
    if count > 1 and checkpoint is not None:
        device = "cuda" if gpus else "cpu"  # of the workers; this process may have none
        title, options = f"features on {device}, {count} workers", {"workers": workers, "threads": cpus}
    with progress(title, "image", on_progress) as report:
        return build_bank(
            spec.dataset, checkpoint, spec.features, store, device=device, report=report, data=data, **options
        )


def open_cached_bank(spec: SweepSpec, fingerprint: str) -> Prepared | None:
    """The bank with this fingerprint from the cache, which a resume can use without the data.

    None if it is missing or damaged.
    """
    path = Path(spec.storage) / CACHE / "banks" / fingerprint
    if not path.is_dir():
        return None
    bank = _verified(path, open_bank)
    if bank is None:
        return None
    _check(spec, bank)
    return Prepared(bank)


def _check(spec: SweepSpec, bank: FeatureBank) -> None:
    """Refuse a sweep that cannot run on this bank, before anything is searched."""
    if spec.selection.on == "val" and bank.val is None:
        raise UserError(
            "selection.on is val, but the dataset has no validation set; add one (val_per_class, val_fraction, "
            "val_features), or select on test, as the paper does"
        )
    rule = spec.selection.epoch_rule(spec.metrics)
    if spec.selection.on == "val" and bank.val is not None and score_column(rule) < len(ACCURACIES):
        split = split_masks(bank.split_counts)[score_column(rule)]
        if not split[bank.val.labels.unique()].any():
            raise UserError(
                f"selection.metric {spec.selection.metric} on val: the validation set has no image of that split; "
                "select on acc_all, or use a larger validation set"
            )
    runs: list[Run] = []
    for candidate in spec.candidates():
        runs.append(Run(candidate.method, candidate.training, 0))
        for path, dimension in candidate.space.items():
            # What a method requires of a bank, such as a head to start from, may depend on the searched value.
            runs += [Run(*candidate.with_values({path: value}), 0) for _, value in dimension.probes()]
    runs += [Run(method, spec.training, 0) for method in spec.baselines]
    check_runs(bank, runs, rule)
    check_packs(spec, PackSize(spec.resources, spec.search.early_stopping, bank.num_classes, bank.feature_dim))


def check_packs(spec: SweepSpec, size: PackSize) -> None:
    """Refuse packs that are too small for the runs of this sweep, before anything is searched.

    Raises:
        UserError: `resources.memory_per_pack` is too small.
    """
    seeds = spec.selection.seeds
    for baseline in spec.baselines:
        size.check(Run(baseline, spec.training, 0), seeds, None)
    for candidate in spec.candidates():
        halving = spec.search.early_stopping.halving(candidate.training) if candidate.method.trains else None
        searched = candidate.space.get("training.batch_size")
        sizes = [value for _, value in searched.probes() if isinstance(value, int)] if searched else []
        largest = candidate.training.model_copy(update={"batch_size": max(sizes)} if sizes else {})
        size.check(Run(candidate.method, largest, 0), seeds, halving)
