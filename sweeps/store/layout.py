"""File names and small files of a storage, readable without loading a spec.

`<storage>/<name>/` is a sweep's directory if it holds `sweep.json` (identity and resolved spec) or the ledger, which
has a copy of it, and a matrix's directory if it holds `matrix.json`. `<storage>/cache/` is shared by all sweeps of the
storage.

`lt-sweep status`, `stop` and `list` use this module instead of `sweeps.store.directory`, which reads the specs in these
files. So they start without torch and work for sweeps whose spec names a plugin that is not installed.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lt_train.core.errors import StorageError, UserError
from lt_train.core.io import atomic_file, fingerprint, parse_json, set_aside

__all__ = [
    "CACHE",
    "IDENTITY",
    "LEDGER",
    "MATRIX_FILE",
    "RESULT",
    "SweepDirectory",
    "check_place",
    "existing_sweep",
    "identity_lost",
    "is_matrix",
    "is_sweep",
    "leases",
    "matrix_sweeps",
    "read_document",
    "read_identity",
    "read_matrix",
    "set_aside_if_damaged",
    "sweep_directory",
    "write_document",
]

logger = logging.getLogger(__name__)


IDENTITY = "sweep.json"
"""File with the identity and the resolved spec of a sweep."""

RESULT = "result.json"
"""The result, which exists once the sweep is finished."""

LEDGER = "ledger.jsonl"
"""The ledger of a sweep, which has a copy of its identity."""

MATRIX_FILE = "matrix.json"
"""File that marks a matrix's directory."""

FORMAT = 1
"""Of the documents that `write_document` writes."""

CACHE = "cache"
"""Directory of a storage with the `checkpoints`, `banks` and `locks` of all sweeps. Not allowed as a sweep's name."""


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document with its format and a digest of its content and of the name of its file, `check`.

    Raises:
        StorageError: the file cannot be written.
    """
    written = {**document, "format": FORMAT}
    with atomic_file(path) as file:
        file.write_text(json.dumps({**written, "check": fingerprint([path.name, written])}, indent=1) + "\n")


def read_document(path: Path) -> dict[str, Any] | None:
    """A document that `write_document` wrote to this file; None if it is missing, altered or that of another file."""
    try:
        document: dict[str, Any] = parse_json(path.read_text())
        check = document.pop("check")
        return document if check == fingerprint([path.name, document]) and document.pop("format") == FORMAT else None
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None


def set_aside_if_damaged(path: Path) -> None:
    """Rename a document that is about to be written again to `<name>.damaged` if it cannot be read.

    Raises:
        StorageError: it could not be renamed.
    """
    if path.exists() and read_document(path) is None:
        set_aside(path)


def check_place(path: Path, *, directory: bool = False) -> None:
    """Refuse to write to a place that holds something of another kind; a broken link is replaced by a file.

    Args:
        path: where a file is to be written, or a directory created.
        directory: whether it is a directory.

    Raises:
        StorageError: there is something else.
    """
    if path.is_dir() if directory else path.is_file():
        return
    if path.exists():
        found = "a directory" if path.is_dir() else "a file" if path.is_file() else "a special file"
    elif directory and path.is_symlink():
        found = "a broken link"
    else:
        return
    wanted = "a directory" if directory else "a file"
    raise StorageError(f"{path} must be {wanted}, but it is {found}; move it away and run again")


@dataclass(frozen=True)
class SweepDirectory:
    """An existing sweep directory.

    Attributes:
        path: the directory. Its name is the sweep's name, its parent the storage.
        identity: the content of `sweep.json`: the sweep's id, start, fingerprints and resolved spec.
    """

    path: Path
    identity: Mapping[str, Any] = field(repr=False, hash=False)

    @property
    def sweep_id(self) -> str:
        """Unique to this sweep and constant; identifies its runs in tracking."""
        return str(self.identity["sweep_id"])

    @property
    def started_ms(self) -> int:
        """When the sweep was first started, in milliseconds since 1970."""
        return int(self.identity["started_ms"])

    @property
    def spec_fingerprint(self) -> str:
        """Fingerprint of the spec (`SweepSpec.fingerprint`)."""
        return str(self.identity["spec_fingerprint"])

    @property
    def bank_fingerprint(self) -> str:
        """Fingerprint of the features that the sweep trains on."""
        return str(self.identity["bank_fingerprint"])

    @property
    def result(self) -> Path:
        """`result.json`."""
        return self.path / RESULT

    @property
    def artifacts(self) -> Path:
        """Tables, figures and the resolved spec of a finished sweep."""
        return self.path / "artifacts"


def leases(storage: Path) -> Path:
    """Directory of the leases of a storage. It is outside the sweep directories because `--fresh` moves those."""
    return storage / CACHE / "locks"


def is_sweep(directory: Path) -> bool:
    """Whether a directory belongs to a sweep: it has `sweep.json`, or the ledger, from which that is restored."""
    directory = directory.expanduser()
    return (directory / IDENTITY).exists() or (directory / LEDGER).exists()


def existing_sweep(path: Path) -> Path:
    """The absolute path of a sweep's directory. Nothing in it is read.

    Raises:
        UserError: `path` is not a sweep directory.
    """
    path = path.expanduser().resolve()
    if not path.exists():
        raise UserError(f"{path} does not exist; give the directory of a sweep, such as runs/demo")
    if not is_sweep(path):
        matrix = " (it is a matrix's directory; each of its sweeps has its own)" * (path / MATRIX_FILE).exists()
        raise UserError(
            f"{path} is not a sweep directory: it has no {IDENTITY} and no {LEDGER}{matrix}; start a sweep with "
            "`lt-sweep run SPEC`"
        )
    return path


def sweep_directory(path: Path) -> SweepDirectory:
    """The sweep in a directory. Its identity is read once and its spec is not parsed.

    Raises:
        UserError: `path` is not a sweep directory, or its `sweep.json` and the copy in the ledger are damaged.
        LongtailError: `sweep.json` is missing or damaged, and the ledger cannot be read.
    """
    path = existing_sweep(path)
    identity = read_identity(path)
    if identity is None:
        raise identity_lost(path)
    return SweepDirectory(path, identity)


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


def read_identity(directory: Path) -> dict[str, Any] | None:
    """The content of a `sweep.json`; if the file is missing or damaged, its copy in the ledger; None without either.

    Raises:
        LongtailError: `sweep.json` is missing or damaged, and the ledger cannot be read.
    """
    document = read_document(directory / IDENTITY)
    if document is not None:
        return document
    from sweeps.store.ledger import LedgerReader

    recorded = LedgerReader(directory).identity
    if recorded is not None:
        what = "damaged" if (directory / IDENTITY).exists() else "missing"
        logger.warning(
            "%s is %s; its copy in the ledger is used, and `lt-sweep resume` writes it again",
            directory / IDENTITY,
            what,
        )
    return recorded


def identity_lost(directory: Path) -> UserError:
    """The error of a sweep whose identity is neither in `sweep.json` nor in the ledger."""
    file = directory / IDENTITY
    with contextlib.suppress(OSError, ValueError):
        document = parse_json(file.read_text())
        if isinstance(document, dict) and (found := document.get("format")) != FORMAT:
            return UserError(
                f"{file} has format {found}, and this version of the program has format {FORMAT}; use the version that "
                "wrote it, or start over with --fresh (the old sweep is kept as .previous-N)"
            )
    what, remove = ("damaged", "remove it and ") if file.exists() else ("missing", "")
    return UserError(
        f"{file} is {what}; {remove}run the sweep file again, which keeps the runs that are undamaged in {LEDGER} or "
        f"packs/ and trains the others again (the ledger has no undamaged copy of {IDENTITY})"
    )


def read_matrix(directory: Path) -> dict[str, Any]:
    """The content of a `matrix.json`: the varied field, resolved specs by value, and failures by value.

    Args:
        directory: the absolute path of the matrix's directory.

    Raises:
        UserError: `directory` is not a matrix's directory, or its `matrix.json` is damaged or that of another matrix.
    """
    file = directory / MATRIX_FILE
    document = read_document(file)
    if document is None:
        if not file.exists():
            raise UserError(f"{directory} is not a matrix's directory: it has no {MATRIX_FILE}")
        raise UserError(
            f"{file} is damaged or was written by another version of the program; `lt-sweep run` with the sweep file "
            "recreates it"
        )
    for value, spec in document["sweeps"].items():
        if spec["name"] != f"{directory.name}-{value}":
            other = spec["name"].removesuffix(f"-{value}")
            raise UserError(
                f"{file} is that of matrix {other}, not of {directory.name}; rename the directory to {other}, or "
                f"recreate the file: `lt-sweep run` with the sweep file of {directory.name}"
            )
    return document
