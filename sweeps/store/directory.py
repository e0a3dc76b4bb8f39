"""Directories of sweeps and matrices: create, resume, archive and load them.

`<storage>/<name>/` of a sweep holds `sweep.json` (identity and resolved spec), `ledger.jsonl`, `packs/`, `heads/`,
`artifacts/` and, once the sweep is finished, `result.json`. The directory of a matrix holds `matrix.json`, the list of
its sweeps, whose own directories are beside it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lt_train.core.clock import now_ms
from lt_train.core.code import code_of, modules_of
from lt_train.core.errors import LongtailError, SpecError, UserError
from lt_train.core.io import writing
from lt_train.core.plugins import is_allowed
from sweeps.config.interfaces import BACKENDS, TRACKERS, BackendSpec, TrackingSpec
from sweeps.config.matrix import SweepMatrix, load_file
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.store.layout import (
    CACHE,
    IDENTITY,
    MATRIX_FILE,
    SweepDirectory,
    check_place,
    identity_lost,
    is_matrix,
    is_sweep,
    read_document,
    read_identity,
    read_matrix,
    set_aside_if_damaged,
    sweep_directory,
    write_document,
)
from sweeps.store.ledger import recorded_sweep_id
from sweeps.store.progress import read_progress

__all__ = [
    "archive",
    "check_name",
    "find_sweep",
    "interrupted_sweep",
    "load_matrix_directory",
    "load_spec",
    "load_target",
    "load_tracking",
    "open_directory",
    "save_matrix",
    "with_backend",
]


def open_directory(spec: SweepSpec, bank_fingerprint: str, earlier: SweepDirectory | None) -> SweepDirectory:
    """Create the sweep's directory, or reopen that of an earlier run of this sweep.

    The caller holds the sweep's lease.

    Args:
        spec: the sweep, with absolute paths (`SweepSpec.with_absolute_paths`).
        bank_fingerprint: fingerprint of the features that the sweep trains on.
        earlier: what `find_sweep` returned under the same lease; None if the directory has been archived since.

    Raises:
        UserError: the directory holds a sweep with other features, or belongs to a matrix.
        StorageError: it cannot be written.
    """
    path = _sweep_path(spec)
    if earlier is None:
        identity = {
            "sweep_id": recorded_sweep_id(path) or uuid.uuid4().hex,
            "started_ms": now_ms(),
            "spec_fingerprint": spec.fingerprint(),
            "bank_fingerprint": bank_fingerprint,
            "code": code_of(spec),
            "modules": modules_of(spec),
            "spec": spec.resolved(),
        }
        write_document(path / IDENTITY, identity)
        return SweepDirectory(path, identity)
    if earlier.bank_fingerprint != bank_fingerprint:
        raise UserError(
            f"{path} was trained on other features: the dataset or the checkpoint has changed since (bank "
            f"{earlier.bank_fingerprint[:12]} then, {bank_fingerprint[:12]} now); restore them, {_REMEDY}"
        )
    if read_document(path / IDENTITY) is None:
        set_aside_if_damaged(path / IDENTITY)
        write_document(path / IDENTITY, earlier.identity)
    return earlier


_REMEDY = "choose another name, or start over with --fresh (the old sweep is kept as .previous-N)"


def find_sweep(spec: SweepSpec, resumed: SweepDirectory | None = None) -> SweepDirectory | None:
    """The directory of an earlier run of this sweep; None if there is none. The caller holds the sweep's lease.

    Args:
        spec: the sweep, with absolute paths (`SweepSpec.with_absolute_paths`).
        resumed: the directory that the spec was read from under the same lease, which is not read again.

    Raises:
        UserError: the directory holds a sweep with another spec, or belongs to a matrix.
        StorageError: its place is taken by a file.
    """
    path = _sweep_path(spec)
    check_place(path, directory=True)
    identity = read_identity(path) if resumed is None else resumed.identity
    if identity is None:
        if (path / IDENTITY).exists():
            raise identity_lost(path)
        return None
    directory = SweepDirectory(path, identity)
    code = code_of(spec)
    if code != identity["code"]:
        changed = ", ".join(sorted({name for name, _ in code.items() ^ identity["code"].items()}))
        raise UserError(
            f"{path} was trained with other code: that of {changed} has changed since; restore it, {_REMEDY}"
        )
    if directory.spec_fingerprint != spec.fingerprint():
        changed = ", ".join(_differences(directory.identity["spec"], spec.resolved()))
        why = f"{changed} differ" if changed else "it was written by another version of this program"
        raise UserError(f"{path} holds another sweep: {why}; {_REMEDY}")
    return directory


def archive(spec: SweepSpec) -> None:
    """Move the directory of an earlier sweep of this name to `<name>.previous-<N>`. The caller holds the sweep's lease.

    Raises:
        UserError: the directory belongs to a matrix.
        StorageError: it cannot be moved.
    """
    path = _sweep_path(spec)
    if not path.exists():
        return
    number = 1
    while (previous := path.with_name(f"{spec.name}.previous-{number}")).exists():
        number += 1
    with writing(previous):
        path.rename(previous)


def _sweep_path(spec: SweepSpec) -> Path:
    path = Path(spec.storage) / spec.name
    if (path / MATRIX_FILE).exists():
        raise UserError(f"{path} is a matrix's directory; choose another name for the sweep, or move the directory")
    return path


def interrupted_sweep(spec: SweepSpec) -> tuple[SweepSpec, SweepDirectory] | None:
    """The sweep of this name whose driver died without recording an end, so that tracking still shows it as running.

    None if there is none, or if its spec cannot be read. The caller holds the sweep's lease.
    """
    path = Path(spec.storage) / spec.name
    progress = read_progress(path)
    if progress is None or progress.ended:
        return None
    try:
        directory = sweep_directory(path)
        return load_spec(directory), directory
    except (OSError, LongtailError):  # written by another version, or damaged
        return None


def check_name(spec: SweepSpec) -> None:
    """Refuse names that the storage uses itself.

    Raises:
        SpecError: the name is reserved.
    """
    taken = tuple(kind.own_files for kind in TRACKERS.kinds().values() if kind.own_files)
    if spec.name == CACHE or spec.name.startswith(taken) or re.search(r"\.previous-\d+$", spec.name):
        raise SpecError(f"name: {spec.name!r} is reserved for the storage itself; choose another name")


def load_spec(directory: SweepDirectory) -> SweepSpec:
    """The spec of the sweep in a directory.

    Raises:
        SpecError: it was written by another version, or uses a kind that is not installed.
    """
    path = directory.path
    # Name and storage follow from the path, because the directory may have been moved.
    document = directory.identity["spec"] | {"storage": str(path.parent), "name": path.name}
    try:
        return load_resolved(document)
    except SpecError:
        modules = [module for module in directory.identity["modules"] if not is_allowed(module)]
        if not modules:
            raise
        if "__main__" in modules:
            remedy = "open it in the notebook or script that defines them"
        else:
            remedy = "give " + " ".join(f"--allow-import {module}" for module in modules) + ", or import them in Python"
        raise SpecError(f"{path} uses kinds of {', '.join(modules)}, which are not imported; {remedy}") from None


def load_tracking(directory: SweepDirectory) -> TrackingSpec:
    """The tracking section of a sweep's spec; the other sections are not parsed.

    Raises:
        SpecError: the kind of tracking is not installed.
    """
    return TRACKERS.parse(directory.identity["spec"]["tracking"])


Sweeps = TypeVar("Sweeps", bound=SweepSpec | SweepMatrix)


def with_backend(spec: Sweeps, backend: str | BackendSpec) -> Sweeps:
    """The same sweep or matrix on another backend, on which results do not depend.

    Args:
        spec: the sweep or matrix.
        backend: an instance, or a kind with its defaults.

    Raises:
        UserError: there is no such backend.
        SpecError: the sweep cannot run on this backend.
    """
    if isinstance(spec, SweepMatrix):
        return spec.map(lambda one: with_backend(one, backend))  # type: ignore[return-value]
    known = BACKENDS.kinds()
    if isinstance(backend, str) and backend not in known:
        raise UserError(f"backend must be one of {', '.join(known)}, got {backend!r}")
    return load_resolved(spec.resolved() | {"backend": backend})  # type: ignore[return-value]


def save_matrix(matrix: SweepMatrix, failed: Mapping[str, str]) -> None:
    """Write `matrix.json`. The caller holds the matrix's lease.

    Args:
        matrix: the matrix, with absolute paths (`SweepMatrix.with_absolute_paths`).
        failed: reasons of the sweeps that failed this time, by value. A sweep that fails early has no directory of its
            own to record its reason.

    Raises:
        UserError: the name of the matrix or of one of its sweeps is taken or reserved.
        StorageError: the file cannot be written.
    """
    for spec in (*matrix.sweeps, matrix.sweeps[0].model_copy(update={"name": matrix.name})):
        check_name(spec)
    directory = Path(matrix.storage) / matrix.name
    if is_sweep(directory):
        raise UserError(
            f"{directory} holds a sweep of this name; choose another name for the matrix, or move the directory"
        )
    check_place(directory, directory=True)
    specs = {value: spec.resolved() for value, spec in matrix.members.items()}
    set_aside_if_damaged(directory / MATRIX_FILE)
    write_document(directory / MATRIX_FILE, {"matrix": matrix.axis, "sweeps": specs, "failed": dict(failed)})


def load_matrix_directory(directory: Path) -> SweepMatrix:
    """The matrix in a directory, which may have been moved together with its sweeps.

    Raises:
        UserError: as `read_matrix`.
    """
    directory = directory.expanduser().resolve()
    document, moved = read_matrix(directory), {"storage": str(directory.parent)}
    specs = {value: load_resolved(spec | moved) for value, spec in document["sweeps"].items()}
    return SweepMatrix(directory.name, document["matrix"], specs)


def load_target(target: Path) -> SweepSpec | SweepMatrix | None:
    """The sweep or matrix of a sweep file or a matrix's directory; None for any other directory."""
    if is_matrix(target):
        return load_matrix_directory(target)
    return None if target.is_dir() else load_file(target)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted paths (two levels deep) in which two resolved specs differ."""
    paths: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            paths += [f"{key}.{inner}" for inner in sorted(a.keys() | b.keys()) if a.get(inner) != b.get(inner)]
        elif a != b:
            paths.append(key)
    return paths
