"""A sweep's directory: what it is called, which sweep it belongs to, and where its parts lie.

`<storage>/<name>/` holds `sweep.json` (identity and resolved spec), `ledger.jsonl`, `heads/`, `artifacts/` and in
the end `result.json`. Knows specs and files; runs nothing.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

from lt_train.core.errors import UserError
from lt_train.core.io import atomic_file, writing
from sweeps.config.backend import BACKENDS
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.config.tracking import TRACKERS, TrackingSpec
from sweeps.store.layout import CACHE, IDENTITY, MATRIX_FILE, SweepDirectory, read_identity, sweep_directory
from sweeps.store.status import read_progress

__all__ = [
    "check_name",
    "known_bank",
    "left_open",
    "load_spec",
    "load_tracking",
    "open_directory",
    "running_spec",
    "set_aside",
]


def open_directory(spec: SweepSpec, bank_fingerprint: str) -> SweepDirectory:
    """The sweep's directory, made if it is new; an unfinished sweep of the same spec is continued.

    The caller holds the sweep's lease.

    Args:
        spec: the sweep, with absolute paths (`SweepSpec.anchored`).
        bank_fingerprint: of the features that the sweep trains on.

    Raises:
        UserError: the directory holds a sweep with another spec or other features, or the name is reserved.
        StorageError: it cannot be written.
    """
    path = _own_path(spec)
    identity = path / IDENTITY
    if identity.exists():
        known = read_identity(identity)
        way_out = "give this one another name, or start it over with --fresh (the old one is kept as .previous-N)"
        if known["spec_fingerprint"] != spec.fingerprint():
            changed = ", ".join(_changes(known["spec"], spec.resolved()))
            raise UserError(f"{path} holds another sweep: {changed} differ; {way_out}")
        if known["bank_fingerprint"] != bank_fingerprint:
            raise UserError(
                f"{path} was trained on other features: the dataset or the checkpoint has changed since (bank "
                f"{known['bank_fingerprint'][:12]} then, {bank_fingerprint[:12]} now); put them back, or {way_out}"
            )
        return SweepDirectory(path, known["sweep_id"], known["started_ms"])
    directory = SweepDirectory(path, uuid.uuid4().hex, time.time_ns() // 1_000_000)
    document = {
        "sweep_id": directory.sweep_id,
        "started_ms": directory.started_ms,
        "spec_fingerprint": spec.fingerprint(),
        "bank_fingerprint": bank_fingerprint,
        "spec": spec.resolved(),
    }
    with atomic_file(identity) as file:
        file.write_text(json.dumps(document, indent=1) + "\n")
    return directory


def set_aside(spec: SweepSpec) -> None:
    """Move what an earlier sweep of this name left to `<name>.previous-<N>`. The caller holds the sweep's lease.

    Raises:
        UserError: the directory is a matrix's.
        StorageError: it cannot be moved.
    """
    path = _own_path(spec)
    if not path.exists():
        return
    number = 1
    while (previous := path.with_name(f"{spec.name}.previous-{number}")).exists():
        number += 1
    with writing(previous):
        path.rename(previous)


def _own_path(spec: SweepSpec) -> Path:
    path = Path(spec.storage) / spec.name
    if (path / MATRIX_FILE).exists():
        raise UserError(f"{path} is a matrix's directory; call the sweep something else, or move it away")
    return path


def left_open(spec: SweepSpec) -> tuple[SweepSpec, SweepDirectory] | None:
    """The sweep of this name whose driver ended without a word, so that tracking takes it to be running still.

    The caller holds the sweep's lease.
    """
    path = Path(spec.storage) / spec.name
    said = read_progress(path)
    if said is None or said.ended:
        return None
    try:
        return load_spec(path), sweep_directory(path)
    except (OSError, UserError):  # of another version, or damaged: nothing of it can be told
        return None


def check_name(spec: SweepSpec) -> None:
    """Refuse names that the storage uses itself.

    Raises:
        UserError: such a name.
    """
    if spec.name == CACHE or spec.name.startswith("mlflow") or re.search(r"\.previous-\d+$", spec.name):
        raise UserError(f"name: {spec.name!r} is taken by the storage itself; call the sweep something else")


def load_spec(path: Path) -> SweepSpec:
    """The spec of a sweep from its directory alone, as `resume` needs it.

    Raises:
        UserError: this is not a sweep directory, or it is damaged.
    """
    path = sweep_directory(path).path
    # The directory may have been moved: it is where it is, not where it was.
    return load_resolved(read_identity(path / IDENTITY)["spec"] | {"storage": str(path.parent), "name": path.name})


def load_tracking(directory: SweepDirectory) -> TrackingSpec:
    """How a sweep is tracked, whatever else its spec names.

    Raises:
        SpecError: it names a kind of tracking that is not there.
    """
    tracking = read_identity(directory.path / IDENTITY)["spec"]["tracking"]
    return TRACKERS.parse(tracking)


def known_bank(spec: SweepSpec) -> str | None:
    """The fingerprint of the bank that the sweep of this name was started on; None for one that was not."""
    identity = Path(spec.storage) / spec.name / IDENTITY
    return str(read_identity(identity)["bank_fingerprint"]) if identity.exists() else None


def running_spec(spec: SweepSpec, backend: str) -> SweepSpec:
    """The same sweep on another backend, given by kind: results do not depend on it.

    Raises:
        UserError: there is no such backend.
    """
    known = BACKENDS.kinds()
    if backend not in known:
        raise UserError(f"--backend must be one of {', '.join(known)}, got {backend!r}")
    return spec.model_copy(update={"backend": known[backend].model_validate({"kind": backend})})


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted paths (two levels) in which two resolved specs differ."""
    paths: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            paths += [f"{key}.{inner}" for inner in sorted(a.keys() | b.keys()) if a.get(inner) != b.get(inner)]
        else:
            paths.append(key)
    return paths
