"""From a dataset and a trained backbone to a feature bank; from features that a user brings, the same bank directly.

The backbone is frozen for good: batch norm in evaluation mode, no gradient, float32. A bank that exists under the
fingerprint of its inputs is not made again. Knows datasets, backbones and the bank; nothing of methods.
Shapes: V training views, A test views, N pictures, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from lt_train import seeding
from lt_train.backbones.base import BackboneSpec, Frozen
from lt_train.backbones.frozen import load_frozen
from lt_train.datasets.base import DatasetSpec, FeatureData, Labelled, PictureData
from lt_train.datasets.pictures import Pictures, read_ahead
from lt_train.datasets.transform import View, draw_views, normalise
from lt_train.errors import CheckpointError, UserError
from lt_train.features.bank import EvalSet, FeatureBank, bank_fingerprint, write_bank
from lt_train.registry import Spec

__all__ = ["FeaturesSpec", "Report", "build_bank"]

Report = Callable[[int, int, str], None]
"""Called as `report(done, total, note)`, in pictures."""


class FeaturesSpec(Spec):
    """Which views of the pictures a bank stores."""

    views: Annotated[
        int,
        Field(
            ge=1,
            description="1 stores the training pictures as they are; V > 1 stores V augmented views, read in turn: "
            "as many as epochs reproduces live augmentation of a frozen backbone",
        ),
    ] = 1
    test_flip: Annotated[
        bool | None,
        Field(description="test on picture and mirror; null follows the dataset's augmentation.flip"),
    ] = None
    seed: Annotated[int, Field(description="of the augmented views")] = 0
    batch_size: Annotated[int, Field(ge=1, description="pictures a forward pass; changes speed and memory only")] = 256


def build_bank(
    dataset: DatasetSpec,
    checkpoint: Path | BackboneSpec | None,
    features: FeaturesSpec,
    store: Path,
    *,
    device: str = "cpu",
    report: Report | None = None,
    data: PictureData | FeatureData | None = None,
) -> Path:
    """The bank of `dataset` through `checkpoint`, made unless it is there already.

    Args:
        dataset: what to load.
        checkpoint: of `lt-train backbone`, or a backbone that names its own; None for a dataset that brings features.
        features: which views to store; a dataset that brings features has its own, and ignores this.
        store: the directory that holds banks, each under its fingerprint.
        device: where the backbone runs.
        report: progress, in pictures.
        data: what `dataset.load()` returned, where the caller has it already.

    Returns:
        The bank's directory, for `open_bank`.

    Raises:
        DataError: the dataset cannot be loaded.
        CheckpointError: no checkpoint where one is needed, a damaged one, or one for other classes or channels.
        UserError: a checkpoint for a dataset that brings features.
        StorageError: the bank could not be written; nothing partial is left.
    """
    data = dataset.load() if data is None else data
    if isinstance(data, FeatureData):
        if checkpoint is not None:
            named = checkpoint.checkpoint if isinstance(checkpoint, BackboneSpec) else checkpoint
            raise UserError(f"dataset {dataset.kind} brings features, so no backbone is used; drop checkpoint {named}")
        return _import(dataset, data, store)
    if checkpoint is None:
        raise CheckpointError(
            f"dataset {dataset.kind} holds pictures and needs a checkpoint; train one with `lt-train backbone`"
        )
    _, channels, height, width = data.train.inputs.shape
    frozen = load_frozen(checkpoint, (channels, height, width))
    _check_fit(frozen, data)
    test_flip = data.augmentation.flip if features.test_flip is None else features.test_flip
    # A backbone sees pictures normalised as in its own training, whatever this dataset's statistics are.
    mean, std = frozen.mean or data.mean, frozen.std or data.std
    inputs = {
        "dataset": dataset.identity(),
        "digests": _digests(data),
        **frozen.identity,
        "transform": {"mean": list(mean), "std": list(std), **data.augmentation.model_dump()},
        "views": features.views,
        "test_flip": test_flip,
        "seed": features.seed,
        "dtype": "float32",
    }
    path = store / bank_fingerprint(inputs)
    if path.is_dir():
        return path
    evaluated = len(data.test) + (len(data.val) if data.val else 0)
    total = features.views * len(data.train) + (1 + test_flip) * evaluated
    extractor = _Extractor(frozen, mean, std, features.batch_size, device, total, report)
    bank = FeatureBank(
        fingerprint=path.name,
        train_features=_train_views(extractor, data, features),
        train_labels=data.train.labels,
        val=_eval_set(extractor, data.val, test_flip) if data.val else None,
        test=_eval_set(extractor, data.test, test_flip),
        head=frozen.head,
        class_counts=data.class_counts(),
        split_counts=data.split_counts,
        notes=(*data.notes, *frozen.notes),
        record=frozen.record,
    )
    return write_bank(store, inputs, bank)


class _Extractor:
    """Runs pictures through a frozen backbone, batch by batch, and counts them."""

    def __init__(
        self,
        frozen: Frozen,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        device: str,
        total: int,
        report: Report | None,
    ) -> None:
        self.backbone = frozen.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feature_dim = frozen.feature_dim
        self.mean, self.std, self.batch_size, self.device = mean, std, batch_size, device
        self.done, self.total, self.report = 0, total, report

    def room(self, views: int, pictures: Pictures) -> Tensor:
        """float32 `[views, N, D]` to be filled: a bank is held once, not in parts and then put together."""
        return torch.empty(views, len(pictures), self.feature_dim)

    def __call__(self, pictures: Pictures | View, changed: Callable[[Tensor, slice], Tensor], into: Tensor) -> None:
        """Fill `into`, `[N, D]`, from uint8 `[N, C, H, W]`, each batch `changed` (mirrored) first."""
        batches = [slice(start, start + self.batch_size) for start in range(0, len(pictures), self.batch_size)]
        with torch.inference_mode():
            for batch, read in zip(batches, read_ahead(pictures, batches), strict=True):
                inputs = normalise(changed(read, batch).to(self.device), self.mean, self.std)
                into[batch] = self.backbone(inputs.contiguous(memory_format=torch.channels_last))
                self.done += len(inputs)
                if self.report:
                    self.report(self.done, self.total, "")


def _train_views(extractor: _Extractor, data: PictureData, features: FeaturesSpec) -> Tensor:
    """float32 `[V, N, D]`; one view is the picture as it is, more are each drawn from (seed, view)."""
    views = extractor.room(features.views, data.train.inputs)
    if features.views == 1:
        extractor(data.train.inputs, _as_is, views[0])
        return views
    for view in range(features.views):
        stream = seeding.generator("feature view", features.seed, view)
        drawn = draw_views(len(data.train), data.augmentation, stream)
        extractor(View(data.train.inputs, data.augmentation, drawn), _as_is, views[view])
    return views


def _eval_set(extractor: _Extractor, part: Labelled[Pictures], flip: bool) -> EvalSet:
    """Features `[A, N, D]` of the pictures and, with `flip`, of their mirrors."""
    views = extractor.room(1 + flip, part.inputs)
    extractor(part.inputs, _as_is, views[0])
    if flip:
        extractor(part.inputs, lambda pictures, batch: pictures.flip(-1), views[1])
    return EvalSet(views, part.labels)


def _as_is(pictures: Tensor, batch: slice) -> Tensor:
    return pictures


def _check_fit(frozen: Frozen, data: PictureData) -> None:
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


def _digests(data: PictureData | FeatureData) -> Mapping[str, str | None]:
    return {
        "train": data.train.digest(),
        "val": data.val.digest() if data.val else None,
        "test": data.test.digest(),
        "split_counts": Labelled(data.split_counts, data.split_counts).digest(),
    }
