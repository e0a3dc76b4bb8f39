"""The feature bank: a frozen backbone's features of one dataset, labels, class counts and the stage-1 head.

A bank is held in memory or memory-mapped; `lt_train.features.files` writes and opens banks.
Shapes: V training views, A test views, N images, D features, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_train.core.errors import BankError
from lt_train.core.imports import torch
from lt_train.datasets._images.files import shared_tensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EvalSet", "FeatureBank"]


@dataclass(frozen=True)
class EvalSet:
    """Features to evaluate on: `[A, N, D]` (A = 2 with the mirrored view) and int64 labels `[N]`."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True, repr=False)
class FeatureBank:
    """Features of one dataset through one frozen backbone, held in memory or memory-mapped.

    Attributes:
        fingerprint: content address (sha256 hex).
        train_features: `[V, N, D]`. Epoch e trains on view e mod V. All features of a bank are float32 or all are
            float16; computations use float32.
        train_labels: int64 `[N]`.
        val, test: the sets for selection and reporting; `val` may be None.
        head: stage-1 classifier `(weight [K, D], bias [K])`, or None.
        class_counts: int64 `[K]`, training images per class (n_k of every prior and weight).
        split_counts: int64 `[K]`, images per class before any hold-out (defines many / medium / few).
        notes: facts that a user must know.
        record: how the backbone was trained, as recorded in its checkpoint, as JSON; empty if unknown.
        class_names: names of the classes in the dataset that the features were extracted from; empty if unknown.
        path: the directory that the bank was opened from; None for a bank in memory.
    """

    fingerprint: str
    train_features: Tensor
    train_labels: Tensor
    val: EvalSet | None
    test: EvalSet
    head: tuple[Tensor, Tensor] | None
    class_counts: Tensor
    split_counts: Tensor
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    path: Path | None = None

    def __repr__(self) -> str:
        views, images, dim = self.train_features.shape
        val = "no val" if self.val is None else f"{len(self.val.labels)} val"
        head = "no stage-1 classifier" if self.head is None else "with stage-1 classifier"
        return (
            f"<FeatureBank {self.fingerprint[:12]}: {images} training ({views} views), {val}, {len(self.test.labels)} "
            f"test images of {self.num_classes} classes, {dim} features, {head}>"
        )

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.class_counts.shape[0])

    @property
    def feature_dim(self) -> int:
        """D."""
        return int(self.train_features.shape[-1])

    def check(self) -> None:
        """Refuse values that cannot be trained on; the bank is scanned once.

        Raises:
            BankError: a feature or the stage-1 head is NaN or infinite, or a label is not a class; the message gives
                their number and the position of the first.
        """
        if self._problem:
            raise BankError(self._problem)

    @functools.cached_property
    def _problem(self) -> str:
        sets = {"train": (self.train_features, self.train_labels), "test": (self.test.features, self.test.labels)}
        if self.val is not None:
            sets["val"] = (self.val.features, self.val.labels)
        problems = [
            problem
            for name, (features, labels) in sets.items()
            for problem in (_label_problem(name, labels, self.num_classes), _feature_problem(name, features))
        ]
        return "; ".join(filter(None, [*problems, _head_problem(self.head)]))

    def to_arrays(self) -> dict[str, Any]:
        """Numpy arrays and metadata, which Ray's object store shares between processes without a copy."""
        arrays: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "notes": self.notes,
            "train_features": self.train_features.numpy(),
            "train_labels": self.train_labels.numpy(),
            "test_features": self.test.features.numpy(),
            "test_labels": self.test.labels.numpy(),
            "class_counts": self.class_counts.numpy(),
            "split_counts": self.split_counts.numpy(),
        }
        if self.val is not None:
            arrays |= {"val_features": self.val.features.numpy(), "val_labels": self.val.labels.numpy()}
        if self.head is not None:
            arrays |= {"weight": self.head[0].numpy(), "bias": self.head[1].numpy()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> FeatureBank:
        """The inverse of `to_arrays`; the tensors are views of the read-only arrays and must not be written to."""

        def tensor(name: str) -> Tensor:
            return shared_tensor(arrays[name])

        return cls(
            fingerprint=arrays["fingerprint"],
            train_features=tensor("train_features"),
            train_labels=tensor("train_labels"),
            val=EvalSet(tensor("val_features"), tensor("val_labels")) if "val_features" in arrays else None,
            test=EvalSet(tensor("test_features"), tensor("test_labels")),
            head=(tensor("weight"), tensor("bias")) if "weight" in arrays else None,
            class_counts=tensor("class_counts"),
            split_counts=tensor("split_counts"),
            notes=tuple(arrays["notes"]),
        )


def _label_problem(name: str, labels: Tensor, num_classes: int) -> str:
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if not len(wrong):
        return ""
    first = int(wrong[0])
    return (
        f"{name} labels must be in 0..{num_classes - 1}, but {len(wrong)} of {len(labels)} are not, the first at "
        f"image {first}: {int(labels[first])}"
    )


def _feature_problem(name: str, features_VND: Tensor) -> str:
    wrong, where = 0, ""
    for view, features_ND in enumerate(features_VND):
        for start in range(0, len(features_ND), 4096):
            chunk = features_ND[start : start + 4096]
            # One pass without a temporary. A sum may overflow, so an infinite one proves nothing.
            if chunk.sum(dtype=torch.float32).isfinite():
                continue
            bad = (~chunk.isfinite()).nonzero()
            wrong += len(bad)
            if len(bad) and not where:
                image, feature = bad[0].tolist()
                where = f"image {start + image}, feature {feature}, view {view}"
    return (
        f"{name} features must be finite, but {wrong} values are NaN or infinite, the first at {where}" if wrong else ""
    )


def _head_problem(head: tuple[Tensor, Tensor] | None) -> str:
    for name, values in zip(("weight", "bias"), head or (), strict=False):
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            where = f"the first of class {int(bad[0, 0])}"
            return f"the stage-1 {name} must be finite, but {len(bad)} values are NaN or infinite, {where}"
    return ""
