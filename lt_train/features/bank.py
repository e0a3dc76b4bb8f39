"""The feature bank: a frozen backbone's features of one dataset, labels, class counts and the stage-1 head.

What a bank is, in memory or memory-mapped, and which values nobody can train on; `bank_files` writes and opens them.
Knows torch; knows nothing of how features came about.

Shapes: V training views, A test views, N images, D features, K classes.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lt_train.core.errors import BankError

__all__ = ["EvalSet", "FeatureBank"]


@dataclass(frozen=True)
class EvalSet:
    """Features to evaluate on: `[A, N, D]` (A = 2 with the mirrored view) and int64 labels `[N]`."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FeatureBank:
    """Features of one dataset through one frozen backbone, held in memory or memory-mapped.

    Attributes:
        fingerprint: content address (sha256 hex).
        train_features: `[V, N, D]`, float32, or float16 as all features of the bank then are; whoever computes with
            them takes them as float32. Epoch e trains on view e mod V.
        train_labels: int64 `[N]`.
        val, test: what to select and report on; `val` may be None.
        head: stage-1 classifier `(weight [K, D], bias [K])`, or None.
        class_counts: int64 `[K]`, training images a class (n_k of every prior and weight).
        split_counts: int64 `[K]`, images a class before any hold-out (defines many / medium / few).
        record: JSON of how its backbone was trained, as its checkpoint says; empty where it does not.
        path: the directory it was opened from; None for one that was made in memory or sent.
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
    path: Path | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.class_counts.shape[0])

    @property
    def feature_dim(self) -> int:
        """D."""
        return int(self.train_features.shape[-1])

    def check(self) -> None:
        """Refuse values that cannot be trained on; the scan is made once.

        Raises:
            BankError: a feature or the stage-1 head is NaN or infinite, or a label is not a class; says how many, and
                where the first is.
        """
        if self._fault:
            raise BankError(self._fault)

    @functools.cached_property
    def _fault(self) -> str:
        sets = {"train": (self.train_features, self.train_labels), "test": (self.test.features, self.test.labels)}
        if self.val is not None:
            sets["val"] = (self.val.features, self.val.labels)
        found = [
            fault
            for name, (features, labels) in sets.items()
            for fault in (_unfit_labels(name, labels, self.num_classes), _unfit_features(name, features))
        ]
        found.append(_unfit_head(self.head))
        return "; ".join(fault for fault in found if fault)

    def to_arrays(self) -> dict[str, Any]:
        """Plain numpy arrays and metadata: what travels through Ray's object store without a copy."""
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
        """The inverse of `to_arrays`; tensors are views of the (read-only) arrays and are never written to."""

        def tensor(name: str) -> Tensor:
            array: np.ndarray[Any, Any] = arrays[name]
            # torch warns about read-only memory; a bank is only ever read, and a copy would defeat the object store.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                return torch.from_numpy(array)

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


def _unfit_labels(name: str, labels: Tensor, num_classes: int) -> str:
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if not len(wrong):
        return ""
    first = int(wrong[0])
    return (
        f"{name} labels must be in 0..{num_classes - 1}, but {len(wrong)} of {len(labels)} are not, the first at "
        f"image {first}: {int(labels[first])}"
    )


def _unfit_features(name: str, features_VND: Tensor) -> str:
    wrong, where = 0, ""
    for view, features_ND in enumerate(features_VND):
        for start in range(0, len(features_ND), 4096):
            chunk = features_ND[start : start + 4096]
            # One pass and no temporary; a sum may overflow, so the rest is not proof.
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


def _unfit_head(head: tuple[Tensor, Tensor] | None) -> str:
    for name, values in zip(("weight", "bias"), head or (), strict=False):
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            where = f"the first of class {int(bad[0, 0])}"
            return f"the stage-1 {name} must be finite, but {len(bad)} values are NaN or infinite, {where}"
    return ""
