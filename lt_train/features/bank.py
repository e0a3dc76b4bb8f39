"""The feature bank: a frozen backbone's features of one dataset, on disk, content-addressed and memory-mapped.

Directory layout (DESIGN section 5): `manifest.json`, `train.safetensors`, `test.safetensors` and, where they exist,
`val.safetensors`, `head.safetensors` and `stage1.json`, what a checkpoint says of its training. A bank is written once
under its fingerprint and never changed; opening one checks every byte. Knows torch and safetensors; knows nothing of
how features came about.

Shapes: V training views, A test views, N pictures, D features, K classes.
"""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lt_train.errors import BankError
from lt_train.storage import atomic_directory, fingerprint, sha256_file
from lt_train.tensor_file import write_tensors

__all__ = [
    "FORMAT",
    "MANIFEST",
    "EvalSet",
    "FeatureBank",
    "Manifest",
    "bank_fingerprint",
    "map_set",
    "open_bank",
    "open_test",
    "read_manifest",
    "write_bank",
]

FORMAT = 1

MANIFEST = "manifest.json"
"""The file that makes a directory a bank; the last to be there."""

RECORD = "stage1.json"


class FileEntry(BaseModel):
    """Size in bytes and sha256 of one file of the bank."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: int
    sha256: str


class Manifest(BaseModel):
    """What a bank says of itself.

    `inputs` is everything that decides its contents (dataset spec and digest, backbone, checkpoint sha256,
    transform, seed, views, dtype) and `fingerprint` its hash: same inputs, same fingerprint, no second extraction.
    `seal` is the hash of the rest of the manifest, so that an edited manifest is noticed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    fingerprint: str
    inputs: dict[str, Any]
    num_classes: int
    feature_dim: int
    views: int
    dtype: str
    class_counts: list[int]
    split_counts: list[int]
    notes: list[str]
    files: dict[str, FileEntry]
    seal: str = ""

    def sealed(self) -> Manifest:
        """This manifest with its seal computed."""
        return self.model_copy(update={"seal": fingerprint(self.model_dump(exclude={"seal"}))})


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
        class_counts: int64 `[K]`, training pictures a class (n_k of every prior and weight).
        split_counts: int64 `[K]`, pictures a class before any hold-out (defines many / medium / few).
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
        f"picture {first}: {int(labels[first])}"
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
                picture, feature = bad[0].tolist()
                where = f"picture {start + picture}, feature {feature}, view {view}"
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


def bank_fingerprint(inputs: Mapping[str, Any]) -> str:
    """The content address of a bank made from `inputs` in this format version."""
    return fingerprint({"format": FORMAT, "inputs": dict(inputs)})


def write_bank(
    store: Path, inputs: Mapping[str, Any], bank: FeatureBank, files: Mapping[str, Path] | None = None
) -> Path:
    """Write `bank` under `store/<fingerprint>`, atomically, and return that directory.

    `bank.fingerprint` must be `bank_fingerprint(inputs)`. `files` in the same file system that hold sets already, as
    safetensors of `features` and `labels`, become the bank's by a second name: nothing of them is copied.

    Raises:
        StorageError: the disk is full or not writable; no partial bank is left behind.
    """
    assert bank.fingerprint == bank_fingerprint(inputs), "a bank is written under the fingerprint of its inputs"
    path = store / bank.fingerprint
    tensors: dict[str, dict[str, Tensor]] = {
        "train": {"features": bank.train_features, "labels": bank.train_labels},
        "test": {"features": bank.test.features, "labels": bank.test.labels},
    }
    if bank.val is not None:
        tensors["val"] = {"features": bank.val.features, "labels": bank.val.labels}
    if bank.head is not None:
        tensors["head"] = {"weight": bank.head[0], "bias": bank.head[1]}
    with atomic_directory(path) as directory:
        entries: dict[str, FileEntry] = {}
        for name, contents in tensors.items():
            file = directory / f"{name}.safetensors"
            if files and name in files:
                _second_name(files[name], file)
            else:
                write_tensors(file, contents)
            entries[file.name] = FileEntry(size=file.stat().st_size, sha256=sha256_file(file))
        if bank.record:
            file = directory / RECORD
            file.write_text(json.dumps(dict(bank.record), allow_nan=False) + "\n")
            entries[RECORD] = FileEntry(size=file.stat().st_size, sha256=sha256_file(file))
        manifest = Manifest(
            format=FORMAT,
            fingerprint=bank.fingerprint,
            inputs=dict(inputs),
            num_classes=bank.num_classes,
            feature_dim=bank.feature_dim,
            views=int(bank.train_features.shape[0]),
            dtype=str(bank.train_features.dtype).removeprefix("torch."),
            class_counts=bank.class_counts.tolist(),
            split_counts=bank.split_counts.tolist(),
            notes=list(bank.notes),
            files=entries,
        ).sealed()
        (directory / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return path


def _second_name(file: Path, name: Path) -> None:
    """Have `name` mean `file` too; where the file system knows one name a file, a copy of it."""
    try:
        name.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, name)


def map_set(file: Path) -> EvalSet:
    """Features and labels of a set's file, memory-mapped."""
    tensors = _map(file)
    return EvalSet(tensors["features"], tensors["labels"])


def open_bank(path: Path) -> FeatureBank:
    """Open a bank directory, memory-mapped, after checking every byte against its manifest.

    Raises:
        BankError: the directory, the manifest or a file is missing, truncated, altered or of another format; the
            message names the file and says to remove the bank so that it is extracted again.
    """
    manifest = read_manifest(path)
    for name, entry in manifest.files.items():
        _check_file(path, name, entry)
    train, test = map_set(path / "train.safetensors"), map_set(path / "test.safetensors")
    val = map_set(path / "val.safetensors") if "val.safetensors" in manifest.files else None
    head = _map(path / "head.safetensors") if "head.safetensors" in manifest.files else None
    return FeatureBank(
        fingerprint=manifest.fingerprint,
        train_features=train.features,
        train_labels=train.labels,
        val=val,
        test=test,
        head=(head["weight"], head["bias"]) if head else None,
        class_counts=torch.tensor(manifest.class_counts),
        split_counts=torch.tensor(manifest.split_counts),
        notes=tuple(manifest.notes),
        record=json.loads((path / RECORD).read_text()) if RECORD in manifest.files else {},
        path=path,
    )


def open_test(path: Path) -> EvalSet:
    """The test set of a bank alone, checked; for those who only look, and need not wait for the training views.

    Raises:
        BankError: as `open_bank`.
    """
    name = "test.safetensors"
    _check_file(path, name, read_manifest(path).files[name])
    return map_set(path / name)


def read_manifest(path: Path) -> Manifest:
    """What a bank says of itself, without a look at its features.

    Raises:
        BankError: there is none, or it is damaged or of another format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise BankError(f"{path} is not a feature bank: it has no manifest.json; make one with `lt-train features`")
    try:
        manifest = Manifest.model_validate_json(file.read_text())
    except (ValidationError, UnicodeDecodeError):
        raise _damaged(path, "manifest.json is truncated or altered") from None
    if manifest.format != FORMAT:
        raise BankError(f"{file}: bank format must be {FORMAT}, got {manifest.format}; extract it again")
    if manifest.sealed().seal != manifest.seal or bank_fingerprint(manifest.inputs) != manifest.fingerprint:
        raise _damaged(path, "manifest.json is altered: it does not match its own seal")
    return manifest


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    file = path / name
    if not file.is_file():
        raise _damaged(path, f"{name} is missing")
    size = file.stat().st_size
    if size != entry.size:
        raise _damaged(path, f"{name} is truncated or altered: {size} bytes where the manifest says {entry.size}")
    if sha256_file(file) != entry.sha256:
        raise _damaged(path, f"{name} is altered: its sha256 is not the one in the manifest")


def _damaged(path: Path, what: str) -> BankError:
    return BankError(f"feature bank {path}: {what}; remove the directory and run again to extract it anew")


def _map(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as contents:
            return {name: contents.get_tensor(name) for name in contents.keys()}
    except SafetensorError as error:
        raise _damaged(file.parent, f"{file.name} cannot be read ({error})") from None
