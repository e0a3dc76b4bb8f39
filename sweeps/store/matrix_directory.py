"""A matrix's directory: `<storage>/<name>/matrix.json` says which sweeps it is, so that all of them can be found again.

Their results are in their own directories beside it. Knows matrices and files; runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lt_train.core.errors import UserError
from lt_train.core.io import atomic_file
from sweeps.config.matrix import SweepMatrix, load_file
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.store.directory import check_name
from sweeps.store.layout import IDENTITY, MATRIX_FILE, is_matrix, read_matrix

__all__ = ["find_sweeps", "load_known_matrix", "save_matrix"]


def save_matrix(matrix: SweepMatrix, failed: Mapping[str, str]) -> None:
    """Write down which sweeps these are. The caller holds the matrix's lease.

    Args:
        matrix: with absolute paths (`SweepMatrix.anchored`).
        failed: why sweeps have failed this time, by value; one that failed early has no directory that could say so.

    Raises:
        UserError: its name, or a member's, is taken.
        StorageError: it cannot be written.
    """
    for spec in (*matrix.sweeps, matrix.sweeps[0].model_copy(update={"name": matrix.name})):
        check_name(spec)
    directory = Path(matrix.storage) / matrix.name
    if (directory / IDENTITY).exists():
        raise UserError(f"{directory} holds a sweep of this name; call the matrix something else, or move it away")
    members = {value: spec.resolved() for value, spec in matrix.members.items()}
    with atomic_file(directory / MATRIX_FILE) as file:
        file.write_text(
            json.dumps({"matrix": matrix.axis, "members": members, "failed": dict(failed)}, indent=1) + "\n"
        )


def load_known_matrix(directory: Path) -> SweepMatrix:
    """The matrix of a directory; wherever it was moved with its members, there it is.

    Raises:
        UserError: this is no matrix's directory, or it is damaged.
    """
    directory = directory.expanduser().resolve()
    known, here = read_matrix(directory), {"storage": str(directory.parent)}
    members = {value: load_resolved(document | here) for value, document in known["members"].items()}
    return SweepMatrix(directory.name, known["matrix"], members)


def find_sweeps(target: Path) -> SweepSpec | SweepMatrix | None:
    """What a file or a matrix's directory stands for; None for any other directory."""
    if is_matrix(target):
        return load_known_matrix(target)
    return None if target.is_dir() else load_file(target)
