"""Building a feature bank from images and a frozen backbone, or directly from a dataset of features.

The backbone runs with batch norm in evaluation mode, without gradients and in float32 on every device, whatever dtype
the bank stores. An existing bank is reused and an interrupted extraction is resumed.
Shapes: V training views, A test views, N images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from lt_train.backbones.base import BackboneSpec, FrozenBackbone
from lt_train.backbones.checkpoint import load_frozen
from lt_train.core.errors import CheckpointError, DataError, StorageError, UserError
from lt_train.core.text import ProgressCallback
from lt_train.core.validation import named
from lt_train.datasets._images.checks import describe_unreadable
from lt_train.datasets._images.files import ImageFiles, Images
from lt_train.datasets.arrays import features_of
from lt_train.datasets.base import DatasetSpec, FeatureData, ImageData, Labelled
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.features.files import bank_fingerprint, map_set, write_bank
from lt_train.features.partial import PartialBank, SetShape, exclusive
from lt_train.features.shards import Extractor, ShardResult, Throughput, Workers, in_this_process, shards
from lt_train.features.spec import FeaturesSpec

__all__ = ["bank_from_arrays", "build_bank"]

_SHARD_BATCHES = 4
"""Batches per shard when other processes extract."""


def build_bank(
    dataset: DatasetSpec,
    checkpoint: Path | BackboneSpec | None,
    features: FeaturesSpec,
    store: Path,
    *,
    device: str = "cpu",
    report: ProgressCallback | None = None,
    data: ImageData | FeatureData | None = None,
    workers: Workers = in_this_process,
    threads: int | None = None,
    throughput: Throughput | None = None,
) -> Path:
    """Build the bank of `dataset` through `checkpoint`, unless it already exists.

    Resumes a call that was killed. Of two concurrent calls for the same bank, one waits for the other.

    Args:
        dataset: what to load.
        checkpoint: of `lt-train backbone`, or a backbone that names its own; None for a dataset of features.
        features: which views to store; ignored for a dataset of features.
        store: the directory that holds banks, each under its fingerprint.
        device: where the backbone runs.
        report: progress callback, counting images.
        data: the result of `dataset.load()`, if the caller has it already.
        workers: what runs the images through the backbone; the bank depends on the type of device, not on the workers.
        threads: torch threads that `workers` use on a CPU; None uses the setting of this process. Another number may
            change the last bits of features.
        throughput: filled with the speed of the extraction.

    Returns:
        The bank's directory, for `open_bank`.

    Raises:
        BankError: a feature is too large for `features.dtype`.
        DataError: the dataset cannot be loaded, or an image is unreadable.
        CheckpointError: the checkpoint is missing, damaged, or for other classes or channels.
        UserError: a checkpoint was given for a dataset of features.
        StorageError: the bank could not be written, or a machine of `workers` lacks images that exist here; finished
            work is kept for the next call.
    """
    data = dataset.load() if data is None else data
    if isinstance(data, FeatureData):
        if checkpoint is not None:
            given = checkpoint.checkpoint if isinstance(checkpoint, BackboneSpec) else checkpoint
            raise UserError(f"dataset {dataset.kind} has features, so no backbone is used; remove checkpoint {given}")
        return _import(dataset, data, store)
    if checkpoint is None:
        raise CheckpointError(
            f"dataset {dataset.kind} contains images and needs a checkpoint; train one with `lt-train backbone`"
        )
    _, channels, height, width = data.train.inputs.shape
    frozen = load_frozen(checkpoint, (channels, height, width))
    _check_fit(frozen, data)
    test_flip = data.augmentation.flip if features.test_flip is None else features.test_flip
    # Images are normalised as in the backbone's own training, whatever the statistics of this dataset.
    mean, std = frozen.mean or data.mean, frozen.std or data.std
    inputs = {
        "dataset": dataset.identity(),
        "digests": _digests(data),
        **frozen.identity,
        "transform": {"mean": list(mean), "std": list(std), **data.augmentation.model_dump()},
        "views": features.views,
        "test_flip": test_flip,
        "seed": features.seed,
        "dtype": features.dtype,
        "unreadable": features.unreadable,  # a request for all images must not be served by a bank that lacks some
    }
    path = store / bank_fingerprint(inputs)
    if path.is_dir():
        return path
    if features.unreadable == "fail":
        for part in data.parts().values():
            if isinstance(part.inputs, ImageFiles):
                part.inputs.refuse_unreadable()
    extractor = Extractor(
        frozen.network,
        {name: part.inputs for name, part in data.parts().items()},
        normalisation=(tuple(mean), tuple(std)),
        augmentation=data.augmentation,
        views=features.views,
        seed=features.seed,
        batch_size=features.batch_size,
        device=device,
        threads=threads,
    )
    sets = {
        name: SetShape(features.views if name == "train" else 1 + test_flip, part.labels)
        for name, part in data.parts().items()
    }
    dtype = getattr(torch, features.dtype)
    on_progress = report or (lambda done, total, note: None)

    def on_wait(owner: str) -> None:
        on_progress(0, _images(sets), f"waiting for {owner}, which extracts the same features")

    with exclusive(path, on_wait) as directory:
        if not path.is_dir():
            with PartialBank(directory, extractor.determinism_key(), sets, frozen.feature_dim, dtype) as partial:
                _extract(partial, extractor, workers, features.unreadable, on_progress, throughput or Throughput())
            write_bank(store, inputs, *_finished(partial, data, frozen, path.name))
    return path


def _extract(
    partial: PartialBank,
    extractor: Extractor,
    workers: Workers,
    unreadable: str,
    on_progress: ProgressCallback,
    throughput: Throughput,
) -> None:
    """Extract the missing features into `partial`."""
    total, before = _images(partial.sets), partial.images
    note = f"resumed after {before} of {total} images" if before else partial.discarded
    if note:
        on_progress(before, total, note)
    batches = 1 if workers is in_this_process else _SHARD_BATCHES
    wanted = shards(partial.missing(), extractor.batch_size * batches)
    started = time.perf_counter()
    for number, done in enumerate(workers(extractor, wanted), start=1):
        _refuse_missing_mount(extractor, done)
        if done.unreadable and unreadable == "fail":
            names = _names(extractor.parts[done.shard.part], done.unreadable)
            raise DataError(
                f"{describe_unreadable({done.shard.part: names})}; fix or remove them, or drop them with "
                "features.unreadable: skip. `lt-train data check` finds all unreadable images"
            )
        start = time.perf_counter()
        partial.add(done)
        throughput.add({**done.seconds, "write": time.perf_counter() - start})
        throughput.images += len(done.features)
        if number == len(wanted):
            throughput.wall = time.perf_counter() - started
            note = "; ".join(filter(None, (note, str(throughput))))
        on_progress(partial.images, total, note)


def _refuse_missing_mount(extractor: Extractor, done: ShardResult) -> None:
    """Refuse a shard whose images were unreadable on its machine but are readable on this one."""
    if (row := extractor.readable(done)) is not None:
        ((name, why),) = _names(extractor.parts[done.shard.part], {row: done.unreadable[row]}).items()
        raise StorageError(
            f"image {name} could not be read on {done.host} ({why}), but can be read on {socket.gethostname()}; every "
            "machine must have all images under the same path; make them available and run the same command again, "
            "finished work is kept"
        )


def _finished(
    partial: PartialBank, data: ImageData, frozen: FrozenBackbone, fingerprint: str
) -> tuple[FeatureBank, dict[str, Path]]:
    """The bank of the extracted features without unreadable images, and the files that hold its sets."""
    parts = data.parts()
    unreadable = {name: _names(part.inputs, partial.unreadable[name]) for name, part in parts.items()}
    kept = {
        name: torch.tensor([row for row in range(len(part)) if row not in partial.unreadable[name]], dtype=torch.int64)
        for name, part in parts.items()
        if unreadable[name]
    }
    labels = {name: part.labels[kept[name]] if name in kept else part.labels for name, part in parts.items()}
    class_counts = torch.bincount(labels["train"], minlength=data.num_classes)
    if "train" in kept and (empty := (class_counts == 0).nonzero().flatten().tolist()):
        raise DataError(
            f"{describe_unreadable(unreadable)}; every class needs a training image, but these have none: "
            f"{named(empty)}"
        )
    for name, left in labels.items():
        if not len(left):
            raise DataError(f"{describe_unreadable(unreadable)}; {name} must have readable images, got none")
    notes = [*data.notes, *frozen.notes]
    if kept:
        notes.append(f"dropped (features.unreadable: skip): {describe_unreadable(unreadable)}")
        notes += [
            f"{name} lacks images: do not compare accuracies on it with published results"
            for name in ("val", "test")
            if name in kept
        ]
    files = partial.finished(kept)
    mapped = {name: map_set(file) for name, file in files.items()}
    bank = FeatureBank(
        fingerprint=fingerprint,
        train_features=mapped["train"].features,
        train_labels=labels["train"],
        val=mapped.get("val"),
        test=mapped["test"],
        head=frozen.head,
        class_counts=class_counts,
        split_counts=data.split_counts,
        notes=tuple(notes),
        record=frozen.record,
        class_names=data.class_names,
    )
    return bank, files


def _names(images: Images, unreadable: Mapping[int, str]) -> dict[str, str]:
    """The reasons in `unreadable` by the names of the images instead of their rows."""
    names = images.names if unreadable and isinstance(images, ImageFiles) else []
    return {names[row]: why for row, why in sorted(unreadable.items())}


def _images(sets: Mapping[str, SetShape]) -> int:
    return sum(shape.views * len(shape.labels) for shape in sets.values())


def _check_fit(frozen: FrozenBackbone, data: ImageData) -> None:
    classes = len(frozen.head[0]) if frozen.head is not None else data.num_classes
    for what, theirs, ours in (
        ("classes", classes, data.num_classes),
        ("input channels", frozen.in_channels, int(data.train.inputs.shape[1])),
    ):
        if theirs != ours:
            raise CheckpointError(
                f"{frozen.display_name} is for another dataset: it has {theirs} {what} where the dataset has {ours}; "
                f"{frozen.remedy}"
            )


def _import(dataset: DatasetSpec, data: FeatureData, store: Path) -> Path:
    """The bank of a dataset of features."""
    inputs = {"dataset": dataset.identity()} | _content(data)
    path = store / bank_fingerprint(inputs)
    return path if path.is_dir() else write_bank(store, inputs, _bank_of(data, path.name))


def bank_from_arrays(
    *,
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    val_features: ArrayLike | None = None,
    val_labels: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    val_fraction: float = 0.2,
) -> FeatureBank:
    """A feature bank in memory, from copies of your own features.

    Args:
        train_features: floats `[N, D]`, or `[V, N, D]` with several views of each image.
        train_labels: integers `[N]`, classes 0 to K - 1; so for the other labels.
        test_features: floats `[N, D]`, or `[A, N, D]`: logits are averaged over A views.
        test_labels: integers `[N]`.
        val_features: as `test_features`.
        val_labels: integers `[N]`.
        weight: of the stage-1 classifier, floats `[K, D]`; without it methods need `init: random`.
        bias: of the stage-1 classifier, floats `[K]`; zero if not given.
        val_fraction: share of each class's training images to hold out for validation if `val_features` is not given;
            0 for none.

    Raises:
        DataError: a shape, dtype, label or value is wrong; the message names the array.
    """
    given = {name: value for name, value in locals().items() if name != "val_fraction" and value is not None}
    copies = {name: torch.as_tensor(value).detach().clone() for name, value in given.items()}
    data = features_of(copies, val_fraction=val_fraction)
    return _bank_of(data, bank_fingerprint(_content(data)))


def _content(data: FeatureData) -> dict[str, Any]:
    """What determines the content of the bank of these features, apart from their origin."""
    content: dict[str, Any] = {"digests": _digests(data), "dtype": "float32"}
    return content if data.head is None else content | {"head": Labelled(*data.head).digest()}


def _bank_of(data: FeatureData, fingerprint: str) -> FeatureBank:
    return FeatureBank(
        fingerprint=fingerprint,
        train_features=data.train.inputs,
        train_labels=data.train.labels,
        val=EvalSet(data.val.inputs, data.val.labels) if data.val else None,
        test=EvalSet(data.test.inputs, data.test.labels),
        head=data.head,
        class_counts=torch.bincount(data.train.labels, minlength=data.num_classes),
        split_counts=data.split_counts,
        notes=data.notes,
    )


def _digests(data: ImageData | FeatureData) -> Mapping[str, str | None]:
    return {
        "train": data.train.digest(),
        "val": data.val.digest() if data.val else None,
        "test": data.test.digest(),
        "split_counts": Labelled(data.split_counts, data.split_counts).digest(),
    }
