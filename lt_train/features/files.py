"""Feature banks on disk: content-addressed directories, written once and memory-mapped.

Directory layout: `manifest.json`, `train.safetensors`, `test.safetensors` and, if they exist, `val.safetensors`,
`head.safetensors` and `stage1.json` (the training record of the checkpoint). A bank is written once under its
fingerprint and never changed; opening one checks every byte.

`read_batches` reads the rows of a bank that does not fit in memory. Training visits rows in random order, and from such
a file each batch would wait for the disk to find its rows one by one. Instead, the rows of many batches, a window, are
fetched in ascending order, which a disk does at full speed, by a thread that is one window ahead. Results are the same
with and without windows. If the system has no `mincore`, or its answer is unreliable (Linux, for files that the user
neither owns nor may write), all rows are assumed to be in memory.

Shapes: V training views, A test views, N images, D features, K classes.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from lt_train.core.errors import BankError
from lt_train.core.imports import torch
from lt_train.core.io import atomic_directory, digest_file, fingerprint, parse_json, write_tensors
from lt_train.features.bank import EvalSet, FeatureBank

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MANIFEST",
    "Manifest",
    "bank_fingerprint",
    "in_memory",
    "map_set",
    "open_bank",
    "open_test",
    "read_batches",
    "read_manifest",
    "write_bank",
]

FORMAT = 3

MANIFEST = "manifest.json"
"""The file that identifies a directory as a bank; it is written last."""

RECORD = "stage1.json"


class FileEntry(BaseModel):
    """Size in bytes and digest (`lt_train.core.io.digest_file`) of one file of the bank."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: int
    digest: str


class Manifest(BaseModel):
    """The description of a bank in `manifest.json`.

    `inputs` is everything that determines its contents (dataset spec and digests, backbone, checkpoint sha256,
    transform, seed, views, dtype) and `fingerprint` is their hash: equal inputs are extracted once. `class_names` are
    those of the dataset when its features were extracted, empty if unknown. `seal` is the hash of the rest of the
    manifest and detects edits.
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
    test_counts: list[int]
    notes: list[str]
    files: dict[str, FileEntry]
    class_names: list[str] = []
    seal: str = ""

    def sealed(self) -> Manifest:
        """This manifest with its seal computed."""
        return self.model_copy(update={"seal": fingerprint(self.model_dump(exclude={"seal"}, exclude_defaults=True))})


def bank_fingerprint(inputs: Mapping[str, Any]) -> str:
    """The content address of a bank made from `inputs` in this format version."""
    return fingerprint({"format": FORMAT, "inputs": dict(inputs)})


def write_bank(
    store: Path, inputs: Mapping[str, Any], bank: FeatureBank, files: Mapping[str, Path] | None = None
) -> Path:
    """Write `bank` under `store/<fingerprint>`, atomically, and return that directory.

    Args:
        store: the directory that holds banks.
        inputs: what determines the contents; `bank.fingerprint` must be `bank_fingerprint(inputs)`.
        bank: what to write.
        files: safetensors files with `features` and `labels`, by name of the set. Those sets are hard-linked from these
            files instead of written from `bank`, or copied where the file system has no hard links.

    Raises:
        StorageError: the disk is full or not writable; no partial bank is left behind.
    """
    assert bank.fingerprint == bank_fingerprint(inputs), "the fingerprint of a bank must be that of its inputs"
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
                _link(files[name], file)
            else:
                write_tensors(file, contents)
            entries[file.name] = FileEntry(size=file.stat().st_size, digest=digest_file(file))
        if bank.record:
            file = directory / RECORD
            file.write_text(json.dumps(dict(bank.record), allow_nan=False) + "\n")
            entries[RECORD] = FileEntry(size=file.stat().st_size, digest=digest_file(file))
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
            test_counts=bank.test.labels.bincount(minlength=bank.num_classes).tolist(),
            notes=list(bank.notes),
            files=entries,
            class_names=list(bank.class_names),
        ).sealed()
        (directory / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return path


def _link(file: Path, name: Path) -> None:
    """Make `name` a hard link to `file`, or a copy where the file system has no hard links."""
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
        BankError: the directory, the manifest or a file is missing, truncated, altered, of another format or of
            another bank; the message names the file.
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
        record=parse_json((path / RECORD).read_text()) if RECORD in manifest.files else {},
        class_names=tuple(manifest.class_names),
        path=path,
    )


def open_test(path: Path) -> EvalSet:
    """The test set of a bank, checked without reading the training views, which are much larger.

    Raises:
        BankError: as in `open_bank`.
    """
    name = "test.safetensors"
    _check_file(path, name, read_manifest(path).files[name])
    return map_set(path / name)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bank; features are not read.

    A directory that is named by a fingerprint must contain that bank. A copy or a link may have any other name.

    Raises:
        BankError: the manifest is missing, damaged, of another format or of another bank.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise BankError(f"{path} is not a feature bank: it has no manifest.json; create one with `lt-train features`")
    try:
        document = parse_json(file.read_text())
        found = document.get("format")
        if found == FORMAT:
            manifest = Manifest.model_validate(document)
            expected = manifest.sealed().seal, bank_fingerprint(manifest.inputs)
    except (ValueError, AttributeError):  # among them those of pydantic and of decoding
        raise _damaged(path, "manifest.json is truncated or altered") from None
    except OSError as error:
        raise _damaged(path, f"manifest.json cannot be read ({error.strerror})") from None
    if found != FORMAT:
        raise BankError(f"{file}: bank format must be {FORMAT}, got {found}; extract it again")
    if expected != (manifest.seal, manifest.fingerprint):
        raise _damaged(path, "manifest.json is altered: its content does not match its seal")
    for name in ("train.safetensors", "test.safetensors"):
        if name not in manifest.files:
            raise _damaged(path, f"manifest.json does not list {name}")
    if re.fullmatch("[0-9a-f]{64}", path.name) and path.name != manifest.fingerprint:
        raise _damaged(path, f"manifest.json belongs to another bank, {manifest.fingerprint}")
    return manifest


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    file = path / name
    if not file.is_file():
        raise _damaged(path, f"{name} is missing")
    try:
        size = file.stat().st_size
        if size != entry.size:
            raise _damaged(path, f"{name} is truncated or altered: {size} bytes instead of {entry.size}")
        if digest_file(file) != entry.digest:
            raise _damaged(path, f"{name} is altered: its digest is not the one in the manifest")
    except OSError as error:
        raise _damaged(path, f"{name} cannot be read ({error.strerror})") from None


def _damaged(path: Path, what: str) -> BankError:
    return BankError(f"feature bank {path}: {what}; remove the directory and run again to recreate it")


def _map(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as contents:
            return {name: contents.get_tensor(name) for name in contents.keys()}
    except SafetensorError as error:
        raise _damaged(file.parent, f"{file.name} cannot be read ({error})") from None


WINDOW_BYTES = 2**26
"""Bytes fetched at once; every stack in training holds two windows. Large files use larger windows, up to
`LARGEST_BYTES`, so that a file is not read more than `PASSES` times per epoch."""


LARGEST_BYTES = 2**28


PASSES = 64


def read_batches(features: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows of each batch, `[n, D]`, of `features [N, D]`.

    Args:
        features: any dtype, may be read-only; on a device, or on the CPU in memory or memory-mapped.
        batches: int64 row numbers on the same device, n in each, of any shape.
    """
    if in_memory(features):
        for batch in batches:
            yield torch.index_select(features, 0, batch.flatten())
        return
    windows = list(_windows(features, batches))
    with ThreadPoolExecutor(1, "bank") as reader:
        pending = reader.submit(_fetch, features, windows[0])
        for following in [*windows[1:], None]:
            rows, places = pending.result()
            if following is not None:
                pending = reader.submit(_fetch, features, following)
            for place in places:
                yield torch.index_select(rows, 0, place)


def in_memory(features: Tensor) -> bool:
    """Whether every byte of `features` is in memory now, on the device or the machine."""
    if features.device.type != "cpu" or not features.is_contiguous() or not features.numel():
        return True
    mincore = getattr(_libc(), "mincore", None)
    if mincore is None:
        return True
    start = features.data_ptr()
    first = start - start % mmap.PAGESIZE
    length = start + features.numel() * features.element_size() - first
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    if mincore(ctypes.c_void_p(first), ctypes.c_size_t(length), pages):
        return True
    # The lowest bit is set if a page is in memory; the other bits are reserved.
    return bool(torch.frombuffer(pages, dtype=torch.uint8).bitwise_and(1).all())


def _windows(features: Tensor, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Batches in groups of about one window of rows."""
    row_bytes = features.shape[1] * features.element_size()
    most = max(WINDOW_BYTES, min(len(features) * row_bytes // PASSES, LARGEST_BYTES)) // row_bytes
    window: list[Tensor] = []
    held = 0
    for batch in batches:
        if window and held + batch.numel() > most:
            yield window
            window, held = [], 0
        window.append(batch.flatten())
        held += batch.numel()
    if window:
        yield window


def _fetch(features: Tensor, window: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The window's rows in file order, and for every batch the positions of its rows among them."""
    wanted, order = torch.cat(list(window)).sort()
    rows = torch.index_select(features, 0, wanted)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return rows, list(places.split([len(batch) for batch in window]))


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
