"""The files of a pack: the arrays of its runs in `packs/`, and their heads in `heads/`.

A file is named `<pack>.<digest>.safetensors` after the digest of its content, so a damaged file is noticed before it is
used. Its tensors are named `<key of the run>/<name>`. A file in `packs/` also holds the pack's lines of the ledger.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lt_train.core.errors import LongtailError
from lt_train.core.imports import torch
from lt_train.core.io import atomic_file, digest, digest_file, sync, write_tensors, writing
from lt_train.retrain.base import RunResult
from sweeps.store.records import RunArrays, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "is_sound",
    "lines_in",
    "name_parts",
    "pack_file",
    "read_arrays",
    "read_head",
    "run_arrays",
    "save_arrays",
    "save_heads",
]

_LINES = "lines"
"""Key of the metadata that holds the lines of the pack, as JSON."""


def pack_file(place: Path, pack: str, recorded: str) -> Path:
    """The file of a pack in `packs/` or `heads/` with the recorded digest."""
    return place / f"{pack}.{recorded}.safetensors"


def name_parts(file: Path) -> tuple[str, str]:
    """The pack and the digest in the name of a file; no digest for a file that is not finished."""
    found = re.fullmatch(r"(.+)\.([0-9a-f]{32})\.safetensors", file.name)
    return (found[1], found[2]) if found else (file.name, "")


def is_sound(file: Path, recorded: str) -> bool:
    """Whether this is a readable file with the recorded digest."""
    try:
        return file.is_file() and digest_file(file) == recorded
    except OSError:
        return False


def save_arrays(
    place: Path, pack: str, keys: Sequence[str], results: Sequence[RunResult], lines: Sequence[Mapping[str, Any]]
) -> str:
    """Write the file in `packs/` with the arrays of all runs, named as in `RunArrays`, and return its digest.

    Raises:
        StorageError: the disk is full, or the place is not writable.
    """
    tensors: dict[str, Tensor] = {}
    for key, result in zip(keys, results, strict=True):
        arrays = {"val": result.val_accuracy, "test": result.test_accuracy, "loss": result.train_loss}
        kept = result.kept
        if kept is not None:
            arrays |= {
                "class_accuracy": kept.class_accuracy,
                "loma": kept.loma,
                "regularised_std": kept.regularised_std,
            }
        # Copied, because arrays from a worker's shared memory are not writable.
        known = {name: np.array(array, dtype=np.float32) for name, array in arrays.items() if array is not None}
        tensors |= {f"{key}/{name}": torch.from_numpy(array) for name, array in known.items()}
    return _save(place, pack, tensors, {_LINES: json.dumps(lines)})


def save_heads(place: Path, pack: str, keys: Sequence[str], results: Sequence[RunResult]) -> str | None:
    """Write the file in `heads/`, and return its digest; None if there is nothing to keep.

    Kept are the heads of the runs that neither failed nor were stopped, because the others cannot win.

    Raises:
        StorageError: the disk is full, or the place is not writable.
    """
    tensors = {
        f"{key}/{name}": torch.from_numpy(np.array(array))
        for key, result in zip(keys, results, strict=True)
        if result.kept is not None and result.stopped is None
        for name, array in result.kept.state.items()
    }
    return _save(place, pack, tensors) if tensors else None


def _save(place: Path, pack: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    staged = place / f"{pack}.staged"
    with atomic_file(staged) as file:
        write_tensors(file, tensors, metadata)
    with writing(place):
        found = digest_file(staged)
        staged.replace(pack_file(place, pack, found))
        sync(place)
    return found


def lines_in(file: Path) -> list[dict[str, Any]]:
    """The lines of the pack in a file in `packs/`, the last of them without the digest of that file; [] for others."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            lines: list[dict[str, Any]] = json.loads((opened.metadata() or {}).get(_LINES, "[]"))
    except (SafetensorError, OSError):
        return []
    return lines


def read_arrays(file: Path, recorded: str) -> dict[str, NDArray[Any]]:
    """The tensors of a file in `packs/`.

    Raises:
        LongtailError: it is missing or altered.
    """
    from safetensors.numpy import load

    with contextlib.suppress(OSError):
        content = file.read_bytes() if file.is_file() else b""
        if digest(content) == recorded:
            tensors: dict[str, NDArray[Any]] = load(content)
            return tensors
    raise _altered(file)


def run_arrays(key: str, tensors: Mapping[str, NDArray[Any]]) -> RunArrays:
    """The arrays of one run among the tensors of its pack."""
    names = [field.name for field in fields(RunArrays) if f"{key}/{field.name}" in tensors]
    found = {name: rounded(tensors[f"{key}/{name}"]) for name in names}
    by_class = {name: found.get(name, np.empty(0)) for name in ("class_accuracy", "loma", "regularised_std")}
    return RunArrays(found.get("val"), found["test"], found["loss"], **by_class)


def read_head(file: Path, recorded: str, key: str) -> dict[str, Tensor]:
    """The head of one run in a file in `heads/`.

    Raises:
        LongtailError: the file is missing or altered.
    """
    from safetensors.torch import load_file

    if not is_sound(file, recorded):
        raise _altered(file)
    prefix = f"{key}/"
    tensors = load_file(file)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _altered(file: Path) -> LongtailError:
    return LongtailError(
        f"{file} is missing or altered; `lt-sweep resume {file.parent.parent}` trains its runs again if they are needed"
    )
