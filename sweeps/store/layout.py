"""File names and small files of a storage, readable without loading a spec.

`<storage>/<name>/` is a sweep's directory if it holds `sweep.json` (identity and resolved spec), and a matrix's
directory if it holds `matrix.json`. `<storage>/cache/` is shared by all sweeps of the storage.

`lt-sweep status`, `stop` and `list` use this module instead of `sweeps.store.directory`, which reads the specs in these
files. So they start without torch and work for sweeps whose spec names a plugin that is not installed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_train.core.errors import UserError
from lt_train.core.io import atomic_file, fingerprint

__all__ = [
    "CACHE",
    "IDENTITY",
    "MATRIX_FILE",
    "SweepDirectory",
    "is_matrix",
    "leases",
    "matrix_sweeps",
    "read_document",
    "read_identity",
    "read_matrix",
    "sweep_directory",
    "write_document",
]

logger = logging.getLogger(__name__)


IDENTITY = "sweep.json"
"""File that marks a sweep's directory."""

MATRIX_FILE = "matrix.json"
"""File that marks a matrix's directory."""

CACHE = "cache"
"""Directory of a storage with the `checkpoints`, `banks` and `locks` of all sweeps. Not allowed as a sweep's name."""


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document with a digest of its content, `check`.

    Raises:
        StorageError: the file cannot be written.
    """
    with atomic_file(path) as file:
        file.write_text(json.dumps({**document, "check": fingerprint(document)}, indent=1) + "\n")


def read_document(path: Path) -> dict[str, Any] | None:
    """A document that `write_document` wrote; None if it is missing or altered."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        check = document.pop("check")
        return document if check == fingerprint(document) else None
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return None


@dataclass(frozen=True)
class SweepDirectory:
    """An existing sweep directory.

    Attributes:
        path: the directory. Its name is the sweep's name, its parent the storage.
        sweep_id: unique to this sweep and constant; identifies its runs in tracking.
        started_ms: when the sweep was first started, in milliseconds since 1970.
    """

    path: Path
    sweep_id: str
    started_ms: int

    @property
    def result(self) -> Path:
        """`result.json`, which exists once the sweep is finished."""
        return self.path / "result.json"

    @property
    def artifacts(self) -> Path:
        """Tables, figures and the resolved spec of a finished sweep."""
        return self.path / "artifacts"


def leases(storage: Path) -> Path:
    """Directory of the leases of a storage. It is outside the sweep directories because `--fresh` moves those."""
    return storage / CACHE / "locks"


def sweep_directory(path: Path) -> SweepDirectory:
    """The sweep in a directory. Its spec is not parsed.

    Raises:
        UserError: `path` is not a sweep directory, or its `sweep.json` is damaged.
    """
    path = path.expanduser().resolve()
    if not path.exists():
        raise UserError(f"{path} does not exist; give the directory of a sweep, such as runs/demo")
    if not (path / IDENTITY).is_file():
        matrix = " (it is a matrix's directory; each of its sweeps has its own)" * (path / MATRIX_FILE).exists()
        raise UserError(
            f"{path} is not a sweep directory: it has no sweep.json{matrix}; start one with `lt-sweep run SPEC`"
        )
    document = read_identity(path)
    return SweepDirectory(path, document["sweep_id"], document["started_ms"])


def is_matrix(directory: Path) -> bool:
    """Whether a directory belongs to a matrix."""
    return (directory.expanduser() / MATRIX_FILE).is_file()


def matrix_sweeps(directory: Path) -> dict[str, str]:
    """The names of a matrix's sweeps, each with the reason why it failed, or "". Their specs are not parsed.

    Raises:
        UserError: as `read_matrix`.
    """
    document = read_matrix(directory.expanduser().resolve())
    return {spec["name"]: document["failed"].get(value, "") for value, spec in document["sweeps"].items()}


def read_identity(directory: Path) -> dict[str, Any]:
    """The content of a `sweep.json`; if the file is damaged, its copy in the ledger.

    Raises:
        UserError: both are damaged.
    """
    document = read_document(directory / IDENTITY)
    if document is not None:
        return document
    from sweeps.store.ledger import FinishedRuns

    recorded = FinishedRuns(directory).identity
    if recorded is None:
        raise UserError(
            f"{directory / IDENTITY} is damaged; remove it and run the sweep file again, which keeps all finished runs"
        )
    logger.warning("%s is missing or damaged; its copy in the ledger is used", directory / IDENTITY)
    return recorded


def read_matrix(directory: Path) -> dict[str, Any]:
    """The content of a `matrix.json`: the varied field, resolved specs by value, and failures by value.

    Raises:
        UserError: `directory` is not a matrix's directory, or its `matrix.json` is damaged.
    """
    file = directory / MATRIX_FILE
    document = read_document(file)
    if document is not None:
        return document
    if not file.exists():
        raise UserError(f"{directory} is not a matrix's directory: it has no {MATRIX_FILE}")
    raise UserError(f"{file} is damaged; `lt-sweep run` with the sweep file recreates it")
