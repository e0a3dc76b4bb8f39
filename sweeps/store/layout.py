"""What lies where in a storage, and what a directory says of itself: names and small files, for all who look at it.

`<storage>/<name>/` is a sweep's directory if it holds `sweep.json` (identity and resolved spec), and a matrix's if it
holds `matrix.json`; `<storage>/cache/` is shared by all. Knows no specs, so that `lt-sweep status`, `stop` and `list`
need not wait for torch: `sweeps.store.directory` and `sweeps.store.matrix_directory` know what these files mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_train.core.errors import UserError

__all__ = [
    "CACHE",
    "IDENTITY",
    "MATRIX_FILE",
    "SweepDirectory",
    "is_matrix",
    "known_members",
    "leases",
    "read_identity",
    "read_matrix",
    "sweep_directory",
]

IDENTITY = "sweep.json"
"""The file that makes a directory a sweep's."""

MATRIX_FILE = "matrix.json"
"""The file that makes a directory a matrix's; no sweep may have its name."""

CACHE = "cache"
"""Directory of the storage with `checkpoints`, `banks` and `locks` of all its sweeps; no sweep may have its name."""

_WRITTEN = {"sweep_id", "started_ms", "spec_fingerprint", "bank_fingerprint", "spec"}
"""What `sweep.json` holds."""


@dataclass(frozen=True)
class SweepDirectory:
    """An existing sweep directory.

    Attributes:
        path: the directory; its name is the sweep's, and what it lies in the storage.
        sweep_id: unique to this sweep, given once; MLflow runs are found again by it.
        started_ms: when it was first started, milliseconds since 1970.
    """

    path: Path
    sweep_id: str
    started_ms: int

    @property
    def result(self) -> Path:
        """Where `result.json` lies once the sweep is finished."""
        return self.path / "result.json"

    @property
    def artifacts(self) -> Path:
        """Tables, figures and the resolved spec of a finished sweep."""
        return self.path / "artifacts"


def leases(storage: Path) -> Path:
    """Where the leases of a storage's sweeps lie: not in their directories, which are moved at a fresh start."""
    return storage / CACHE / "locks"


def sweep_directory(path: Path) -> SweepDirectory:
    """The sweep of a directory, whose spec may name kinds that are not there: its name and storage are the path's.

    Raises:
        UserError: this is not a sweep directory, or it is damaged.
    """
    path = path.expanduser().resolve()
    identity = path / IDENTITY
    if not identity.is_file():
        matrix = "; it is a matrix's, and each member has its own" * (path / MATRIX_FILE).exists()
        raise UserError(
            f"{path} is not a sweep directory: it has no sweep.json{matrix}; start one with `lt-sweep run SPEC`"
        )
    known = read_identity(identity)
    return SweepDirectory(path, known["sweep_id"], known["started_ms"])


def is_matrix(directory: Path) -> bool:
    """Whether a directory is a matrix's."""
    return (directory.expanduser() / MATRIX_FILE).is_file()


def known_members(directory: Path) -> dict[str, str]:
    """The names of a matrix's sweeps, whose specs may name kinds that are not there, and why each has failed, or "".

    Raises:
        UserError: this is no matrix's directory, or it is damaged.
    """
    known = read_matrix(directory.expanduser().resolve())
    return {document["name"]: known["failed"].get(value, "") for value, document in known["members"].items()}


def read_identity(identity: Path) -> dict[str, Any]:
    """What a `sweep.json` holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        known = json.loads(identity.read_text())
    except ValueError:
        known = None
    if not isinstance(known, dict) or not known.keys() >= _WRITTEN:
        raise UserError(f"{identity} is damaged; remove its directory to start the sweep over")
    return known


def read_matrix(directory: Path) -> dict[str, Any]:
    """What a `matrix.json` holds.

    Raises:
        UserError: this is no matrix's directory, or it is damaged.
    """
    try:
        known = json.loads((directory / MATRIX_FILE).read_text())
        return {"matrix": known["matrix"], "members": dict(known["members"]), "failed": dict(known.get("failed", {}))}
    except FileNotFoundError:
        raise UserError(f"{directory} is not a matrix's directory: it has no {MATRIX_FILE}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{directory / MATRIX_FILE} is damaged; `lt-sweep run` with the sweep file writes it anew"
        ) from None
