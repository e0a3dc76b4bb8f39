"""`check_dataset`: what `DatasetSpec.load` must return."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from lt_train.datasets.base import DatasetSpec, FeatureData, ImageData, Labelled
from lt_train.testing.kinds import check_kind

__all__ = ["check_dataset"]


def check_dataset(dataset: DatasetSpec | type[DatasetSpec]) -> None:
    """Check a dataset: what `load` returns, and that it returns the same again.

    Shapes and types are those of `ImageData` or `FeatureData`, labels are 0 .. K-1, every class has training images,
    `split_counts` covers them, and no input is in two parts.

    Args:
        dataset: an instance, or a class whose fields have defaults. The data is loaded twice.

    Raises:
        AssertionError: a requirement is not met.
        DataError: the data cannot be loaded.
    """
    checked = check_kind(dataset, DatasetSpec)
    name, data, again = type(checked).__name__, checked.load(), checked.load()
    assert isinstance(data, ImageData | FeatureData), f"{name}.load must return ImageData or FeatureData, got {data!r}"
    parts = {part: getattr(data, part) for part in ("train", "val", "test") if getattr(data, part) is not None}
    for part, labelled in parts.items():
        _check_part(f"{name}: {part}", data, labelled)
        assert labelled.digest() == getattr(again, part).digest(), f"{name}: loading again gives another {part} set"
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    assert data.split_counts.shape == (data.num_classes,), f"{name}: split_counts must have one entry per class"
    empty = (counts == 0).nonzero().flatten().tolist()
    assert not empty, f"{name}: classes {empty} have no training image"
    assert bool((data.split_counts >= counts).all()), f"{name}: split_counts must count all training images"
    contents = {part: set(_rows(labelled)) for part, labelled in parts.items()}
    for one, other in itertools.combinations(contents, 2):
        shared = len(contents[one] & contents[other])
        assert not shared, f"{name}: {one} and {other} have {shared} {'input' if shared == 1 else 'inputs'} in common"


def _check_part(name: str, data: ImageData | FeatureData, part: Labelled[Any]) -> None:
    labels, inputs = part.labels, part.inputs
    assert labels.dtype == torch.int64, f"{name}: labels must be int64, got {labels.dtype}"
    assert labels.ndim == 1, f"{name}: labels must have one axis, got shape {tuple(labels.shape)}"
    assert len(labels), f"{name} is empty"
    low, high, last = int(labels.min()), int(labels.max()), data.num_classes - 1
    assert 0 <= low <= high <= last, f"{name}: labels must be in 0 .. {last}, got {low} .. {high}"
    wanted, axes, images = (torch.uint8, 4, 0) if isinstance(data, ImageData) else (torch.float32, 3, 1)
    if isinstance(inputs, Tensor):
        assert inputs.dtype == wanted, f"{name}: inputs must be {wanted}, got {inputs.dtype}"
    assert len(inputs.shape) == axes, f"{name}: inputs must have {axes} axes, got shape {tuple(inputs.shape)}"
    assert inputs.shape[images] == len(labels), f"{name}: {inputs.shape[images]} inputs and {len(labels)} labels"


def _rows(part: Labelled[Any]) -> list[bytes]:
    """The content of every image that is in memory; of features, of the first view."""
    if not isinstance(part.inputs, Tensor):
        return []
    inputs = part.inputs if part.inputs.dtype == torch.uint8 else part.inputs[0]
    return [row.contiguous().numpy().tobytes() for row in inputs]
