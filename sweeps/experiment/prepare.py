"""From a sweep's data, backbone and features sections to an open feature bank, doing only what is not done already.

Trained backbones and banks are kept under `<storage>/cache`, addressed by what decides them, and shared by all sweeps
of that storage. Knows the specs and lt_train; knows no search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lt_train.backbones.base import BackboneSpec
from lt_train.backbones.frozen import ImageSource
from lt_train.core.device import check_device
from lt_train.core.errors import UserError
from lt_train.core.io import fingerprint
from lt_train.core.progress import progress
from lt_train.datasets.base import FeatureData, ImageData
from lt_train.features.bank import FeatureBank
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.shards import Extractor, Shard, ShardResult
from lt_train.metrics.accuracy import SPLITS, split_masks
from lt_train.pretrain.train import train_backbone
from lt_train.retrain.base import Run, check_runs
from sweeps.config.backend import BackboneJob
from sweeps.config.spec import SweepSpec
from sweeps.experiment.packing import PackSize
from sweeps.store.layout import CACHE

__all__ = ["Prepared", "check_packs", "prepare", "prepare_all", "prepared_before"]


@dataclass(frozen=True)
class Prepared:
    """A sweep's bank, and the images behind it; None where features were brought, or nobody knows any more."""

    bank: FeatureBank
    images: ImageSource | None = None


def prepare(spec: SweepSpec, told: Callable[[str], None] | None = None) -> FeatureBank:
    """The bank of `prepare_all`."""
    return prepare_all(spec, told).bank


def prepare_all(spec: SweepSpec, told: Callable[[str], None] | None = None) -> Prepared:
    """The sweep's feature bank: trains the backbone and extracts features where that was not done before.

    Args:
        spec: what to do.
        told: hears how far that is.

    Raises:
        UserError: data, checkpoint and bank errors of lt_train, or a selection that this bank cannot serve.
        StorageError: the disk is full.
    """
    device = _device(spec)
    data = spec.dataset.load()
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    for method in [candidate.method for candidate in spec.candidates()] + list(spec.baselines):
        if reason := method.incompatibility(counts):  # known now, and worth no training of a backbone
            raise UserError(f"method {method.kind}: {reason}")
    checkpoint = _trained(spec, data, device, told)
    bank = open_bank(_extracted(spec, data, checkpoint, device, told))
    _check(spec, bank)
    if checkpoint is None:
        return Prepared(bank)
    _, channels, height, width = data.train.inputs.shape
    return Prepared(bank, ImageSource(checkpoint, (channels, height, width)))


def _extracted(
    spec: SweepSpec,
    data: ImageData | FeatureData,
    checkpoint: Path | BackboneSpec | None,
    device: str,
    told: Callable[[str], None] | None,
) -> Path:
    """Where the bank lies, made by this process or by as many others as the sweep asks for."""
    resources, store = spec.resources, Path(spec.storage) / CACHE / "banks"
    if resources.extract_workers == 1 or checkpoint is None:
        with progress(f"features on {device}", "image", told) as report:
            return build_bank(spec.dataset, checkpoint, spec.features, store, device=device, report=report, data=data)
    device = "cuda" if resources.gpus_per_pack else "cpu"  # theirs; this process may have none

    def workers(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        # Only now: a bank that is there needs no Ray.
        with spec.backend.extractors(
            resources.extract_workers, cpus=resources.cpus_per_pack, gpus=resources.gpus_per_pack
        ) as extract:
            yield from extract(extractor, wanted)

    with progress(f"features on {device}, {resources.extract_workers} workers", "image", told) as report:
        return build_bank(
            spec.dataset,
            checkpoint,
            spec.features,
            store,
            device=device,
            report=report,
            data=data,
            workers=workers,
            threads=resources.cpus_per_pack,
        )


def _device(spec: SweepSpec) -> str:
    """Where the backbone is trained and run: as packs are, unless only other machines have such a device.

    Raises:
        UserError: packs are trained here, on a device that this machine does not have.
    """
    if not spec.resources.gpus_per_pack:
        return "cpu"
    if spec.backend.trains_elsewhere() and not torch.cuda.is_available():
        return "cpu"
    check_device("cuda")
    return "cuda"


def prepared_before(spec: SweepSpec, fingerprint: str) -> Prepared | None:
    """A bank that this storage holds already, by its fingerprint: all that a resume needs, whatever became of data."""
    path = Path(spec.storage) / CACHE / "banks" / fingerprint
    if not path.is_dir():
        return None
    bank = open_bank(path)
    _check(spec, bank)
    return Prepared(bank)


def _trained(
    spec: SweepSpec, data: ImageData | FeatureData, device: str, told: Callable[[str], None] | None
) -> Path | BackboneSpec | None:
    """What to extract with: the backbone with its checkpoint, or one trained by the recipe; None for features."""
    if isinstance(data, FeatureData):
        if spec.backbone is not None:
            raise UserError(f"dataset {spec.dataset.kind} brings features; leave out backbone and stage1")
        return None
    if spec.backbone is None:
        raise UserError(f"dataset {spec.dataset.kind} holds images; say which backbone turns them into features")
    if spec.backbone.checkpoint is not None:
        return spec.backbone
    assert spec.stage1 is not None, "the spec asks for a recipe where no checkpoint is given"
    workers = spec.resources.stage1_workers
    address = fingerprint(
        {
            "train": data.train.digest(),
            "augmentation": data.augmentation.model_dump(),
            "mean": data.mean,
            "std": data.std,
            "backbone": spec.backbone.model_dump(mode="json"),
            "stage1": spec.stage1.identity(workers=workers),
            # Several add up in another order, and each has its own statistics of batch norm: other weights.
            **({"workers": workers} if workers > 1 else {}),
        }
    )
    out = Path(spec.storage) / CACHE / "checkpoints" / f"{spec.backbone.kind}-{address[:16]}.safetensors"
    if not out.exists():
        about = {"dataset": spec.dataset.model_dump(mode="json")}
        on = device if workers == 1 else f"{workers} workers"
        with progress(f"stage 1 ({spec.backbone.kind}, {spec.stage1.kind}) on {on}", told=told) as report:
            if workers == 1:
                train_backbone(data, spec.backbone, spec.stage1, out, device=device, about=about, report=report)
            else:
                job = BackboneJob(data, spec.dataset, spec.backbone, spec.stage1, about)
                cpus, gpus = spec.resources.cpus_per_pack, spec.resources.gpus_per_pack
                spec.backend.train_backbone(job, out, workers=workers, cpus=cpus, gpus=gpus, report=report)
    return out


def _check(spec: SweepSpec, bank: FeatureBank) -> None:
    """Refuse, before anything is searched, what no run of this sweep could do on this bank."""
    if spec.selection.on == "val" and bank.val is None:
        raise UserError(
            "selection.on is val, and this dataset has no validation set; give it one (val_per_class, val_fraction, "
            "val_features) or select on test, as the paper does"
        )
    if spec.selection.on == "val" and bank.val is not None:
        split = split_masks(bank.split_counts)[SPLITS.index(spec.selection.metric.removeprefix("acc_"))]
        if not split[bank.val.labels.unique()].any():
            raise UserError(
                f"selection.metric {spec.selection.metric} on val: the validation set has no image of that split; "
                "select on acc_all, or give the dataset a larger validation set"
            )
    runs: list[Run] = []
    for candidate in spec.candidates():
        runs.append(Run(candidate.method, candidate.training, 0))
        for path, dimension in candidate.space.items():
            # What a choice asks of a bank, such as a head to start from, must hold for every value of it.
            runs += [Run(*candidate.with_values({path: value}), 0) for _, value in dimension.probes()]
    runs += [Run(method, spec.training, 0) for method in spec.baselines]
    check_runs(bank, runs, spec.selection.epoch_rule())
    check_packs(spec, PackSize(spec.resources, spec.search.early_stopping, bank.num_classes, bank.feature_dim))


def check_packs(spec: SweepSpec, size: PackSize) -> None:
    """Refuse, before anything is searched, packs too small for what this sweep may put into one.

    Raises:
        UserError: resources.memory_per_pack is too small.
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
