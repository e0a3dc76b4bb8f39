"""From a dataset and a trained backbone to a feature bank; from features that a user brings, the same bank directly.

The backbone is frozen for good: batch norm in evaluation mode, no gradient, float32 on every device, whatever the bank
stores. A bank that exists under the fingerprint of its inputs is not made again, and one that is half made is gone on
with. Knows datasets, backbones and the bank; nothing of methods.
Shapes: V training views, A test views, N images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from lt_train.backbones.base import BackboneSpec, FrozenBackbone
from lt_train.backbones.frozen import load_frozen
from lt_train.core.errors import CheckpointError, DataError, StorageError, UserError
from lt_train.core.registry import Spec
from lt_train.core.validation import named
from lt_train.datasets._images.files import ImageFiles, Images
from lt_train.datasets._images.listing import told
from lt_train.datasets.base import DatasetSpec, FeatureData, ImageData, Labelled
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.features.files import bank_fingerprint, map_set, write_bank
from lt_train.features.partial import Partial, SetShape, alone
from lt_train.features.shards import Extractor, ShardResult, Throughput, Workers, in_this_process, shards

__all__ = ["FeaturesSpec", "Report", "build_bank"]

Report = Callable[[int, int, str], None]
"""Called as `report(done, total, note)`, in images."""

_SHARD_BATCHES = 4
"""Batches that another process is given at once."""


class FeaturesSpec(Spec):
    """Which views of the images a bank stores, and how."""

    views: Annotated[
        int,
        Field(
            ge=1,
            description="1 stores the training images as they are; V > 1 stores V augmented views, read in turn: "
            "as many as epochs reproduces live augmentation of a frozen backbone",
        ),
    ] = 1
    test_flip: Annotated[
        bool | None,
        Field(description="test on image and mirror; null follows the dataset's augmentation.flip"),
    ] = None
    seed: Annotated[int, Field(description="of the augmented views")] = 0
    batch_size: Annotated[int, Field(ge=1, description="images a forward pass; changes speed and memory only")] = 256
    dtype: Annotated[
        Literal["float32", "float16"],
        Field(
            description="of the features on disk: float16 takes half the room; they are computed, and trained on, in "
            "float32 in any case"
        ),
    ] = "float32"
    unreadable: Annotated[
        Literal["fail", "skip"],
        Field(
            description="of images that turn out missing, empty or damaged as they are decoded: give up and name "
            "the first, or leave them out and say so; what bad_images of the dataset finds is never met here"
        ),
    ] = "fail"

    def identity(self) -> dict[str, Any]:
        """The spec as JSON, less what is at a default that was the only way once: sweeps of before stay known."""
        return self.model_dump(mode="json", exclude=self.at_default("dtype", "unreadable"))


def build_bank(
    dataset: DatasetSpec,
    checkpoint: Path | BackboneSpec | None,
    features: FeaturesSpec,
    store: Path,
    *,
    device: str = "cpu",
    report: Report | None = None,
    data: ImageData | FeatureData | None = None,
    workers: Workers = in_this_process,
    threads: int | None = None,
    pace: Throughput | None = None,
) -> Path:
    """The bank of `dataset` through `checkpoint`, made unless it is there already.

    A call that was killed is gone on with by the next. Of two at the same time, one waits for the other.

    Args:
        dataset: what to load.
        checkpoint: of `lt-train backbone`, or a backbone that names its own; None for a dataset that brings features.
        features: which views to store; a dataset that brings features has its own, and ignores this.
        store: the directory that holds banks, each under its fingerprint.
        device: where the backbone runs.
        report: progress, in images.
        data: what `dataset.load()` returned, where the caller has it already.
        workers: who runs the images through the backbone; on one kind of device, the bank does not depend on it.
        threads: of torch that `workers` have on a CPU; None: as many as this process has. With other numbers of them
            features may differ in their last bits.
        pace: is told how fast it went.

    Returns:
        The bank's directory, for `open_bank`.

    Raises:
        BankError: a feature is too large for `features.dtype`.
        DataError: the dataset cannot be loaded, or an image cannot be read.
        CheckpointError: no checkpoint where one is needed, a damaged one, or one for other classes or channels.
        UserError: a checkpoint for a dataset that brings features.
        StorageError: the bank could not be written, or a machine of `workers` lacks images that are here; what was
            extracted is kept for the next call.
    """
    data = dataset.load() if data is None else data
    if isinstance(data, FeatureData):
        if checkpoint is not None:
            theirs = checkpoint.checkpoint if isinstance(checkpoint, BackboneSpec) else checkpoint
            raise UserError(f"dataset {dataset.kind} brings features, so no backbone is used; drop checkpoint {theirs}")
        return _import(dataset, data, store)
    if checkpoint is None:
        raise CheckpointError(
            f"dataset {dataset.kind} holds images and needs a checkpoint; train one with `lt-train backbone`"
        )
    _, channels, height, width = data.train.inputs.shape
    frozen = load_frozen(checkpoint, (channels, height, width))
    _check_fit(frozen, data)
    test_flip = data.augmentation.flip if features.test_flip is None else features.test_flip
    # A backbone sees images normalised as in its own training, whatever this dataset's statistics are.
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
        # Who wants all images is not given a bank that lacks some.
        **({} if features.unreadable == "fail" else {"unreadable": features.unreadable}),
    }
    path = store / bank_fingerprint(inputs)
    if path.is_dir():
        return path
    if features.unreadable == "fail":
        for part in _parts(data).values():
            if isinstance(part.inputs, ImageFiles):
                part.inputs.refuse_unreadable()
    extractor = Extractor(
        frozen.network,
        {name: part.inputs for name, part in _parts(data).items()},
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
        for name, part in _parts(data).items()
    }
    dtype = getattr(torch, features.dtype)
    told_of = report or (lambda done, total, note: None)
    with alone(path, lambda who: told_of(0, _images(sets), f"waiting for {who}, which extracts the same")) as place:
        if not path.is_dir():
            with Partial(place, extractor.determinism_key(), sets, frozen.feature_dim, dtype) as partial:
                _extract(partial, extractor, workers, features.unreadable, told_of, pace or Throughput())
            write_bank(store, inputs, *_finished(partial, data, frozen, path.name))
    return path


def _extract(
    partial: Partial, extractor: Extractor, workers: Workers, unreadable: str, report: Report, pace: Throughput
) -> None:
    """Fill what is missing."""
    total, before = _images(partial.sets), partial.images
    note = f"resumed after {before} of {total} images" if before else partial.discarded
    if note:
        report(before, total, note)
    at_once = 1 if workers is in_this_process else _SHARD_BATCHES
    wanted = shards(partial.missing(), extractor.batch_size * at_once)
    begun = time.perf_counter()
    for number, done in enumerate(workers(extractor, wanted), start=1):
        _refuse_lacking_machine(extractor, done)
        if done.unreadable and unreadable == "fail":
            raise DataError(
                f"{told({done.shard.part: _names(extractor.parts[done.shard.part], done.unreadable)})}; mend or remove "
                "them, or leave them out with features.unreadable: skip. `lt-train data check` finds every such image"
            )
        start = time.perf_counter()
        partial.add(done)
        pace.add({**done.seconds, "write": time.perf_counter() - start})
        pace.images += len(done.features)
        if number == len(wanted):
            pace.wall = time.perf_counter() - begun
            note = "; ".join(filter(None, (note, str(pace))))
        report(partial.images, total, note)


def _refuse_lacking_machine(extractor: Extractor, done: ShardResult) -> None:
    """Refuse what says nothing of the images: they can be read here, and could not where the shard was done."""
    if (row := extractor.readable(done)) is not None:
        ((name, why),) = _names(extractor.parts[done.shard.part], {row: done.unreadable[row]}).items()
        raise StorageError(
            f"image {name} could not be read on {done.host} ({why}), and can be on {socket.gethostname()}; every "
            "machine must have all images under the same path: see to that and run the same command again, what is "
            "done is kept"
        )


def _finished(
    partial: Partial, data: ImageData, frozen: FrozenBackbone, fingerprint: str
) -> tuple[FeatureBank, dict[str, Path]]:
    """The bank of what was extracted, less the images that could not be read, and the files that hold its sets."""
    bad = {name: _names(part.inputs, partial.unreadable[name]) for name, part in _parts(data).items()}
    kept = {
        name: torch.tensor([row for row in range(len(part)) if row not in partial.unreadable[name]], dtype=torch.int64)
        for name, part in _parts(data).items()
        if bad[name]
    }
    labels = {name: part.labels[kept[name]] if name in kept else part.labels for name, part in _parts(data).items()}
    class_counts = torch.bincount(labels["train"], minlength=data.num_classes)
    if "train" in kept and (empty := (class_counts == 0).nonzero().flatten().tolist()):
        raise DataError(f"{told(bad)}; every class needs a training image, and these have none: {named(empty)}")
    for name, left in labels.items():
        if not len(left):
            raise DataError(f"{told(bad)}; {name} must have images that can be read, and has none")
    notes = [*data.notes, *frozen.notes]
    if kept:
        notes.append(f"left out (features.unreadable: skip): {told(bad)}")
        notes += [
            f"{name} lacks images: accuracies on it compare with no published ones"
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
    )
    return bank, files


def _parts(data: ImageData) -> dict[str, Labelled[Images]]:
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}


def _names(images: Images, unreadable: Mapping[int, str]) -> dict[str, str]:
    """What is wrong with images, by name."""
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
                f"{frozen.called} is for another dataset: it has {theirs} {what} where the dataset has {ours}; "
                f"{frozen.remedy}"
            )


def _import(dataset: DatasetSpec, data: FeatureData, store: Path) -> Path:
    """The bank of features that came from outside."""
    inputs: dict[str, Any] = {"dataset": dataset.identity(), "digests": _digests(data), "dtype": "float32"}
    if data.head is not None:
        inputs["head"] = Labelled(*data.head).digest()
    path = store / bank_fingerprint(inputs)
    if path.is_dir():
        return path
    bank = FeatureBank(
        fingerprint=path.name,
        train_features=data.train.inputs,
        train_labels=data.train.labels,
        val=EvalSet(data.val.inputs, data.val.labels) if data.val else None,
        test=EvalSet(data.test.inputs, data.test.labels),
        head=data.head,
        class_counts=torch.bincount(data.train.labels, minlength=data.num_classes),
        split_counts=data.split_counts,
        notes=data.notes,
    )
    return write_bank(store, inputs, bank)


def _digests(data: ImageData | FeatureData) -> Mapping[str, str | None]:
    return {
        "train": data.train.digest(),
        "val": data.val.digest() if data.val else None,
        "test": data.test.digest(),
        "split_counts": Labelled(data.split_counts, data.split_counts).digest(),
    }
