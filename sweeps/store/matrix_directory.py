"""A family's directory: `<storage>/<name>/family.json` says which sweeps it is, so that all of them can be found again.

Their results are in their own directories beside it. Knows families and files; runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lt_train.core.errors import UserError
from lt_train.core.io import atomic_file
from sweeps.config.matrix import Family, load_file
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.store.directory import check_name
from sweeps.store.layout import FAMILY, IDENTITY, is_family, read_family

__all__ = ["find_sweeps", "load_known_family", "save_family"]


def save_family(family: Family, failed: Mapping[str, str]) -> None:
    """Write down which sweeps these are. The caller holds the family's lease.

    Args:
        family: with absolute paths (`Family.anchored`).
        failed: why sweeps have failed this time, by value; one that failed early has no directory that could say so.

    Raises:
        UserError: its name, or a member's, is taken.
        StorageError: it cannot be written.
    """
    for spec in (*family.sweeps, family.sweeps[0].model_copy(update={"name": family.name})):
        check_name(spec)
    directory = Path(family.storage) / family.name
    if (directory / IDENTITY).exists():
        raise UserError(f"{directory} holds a sweep of this name; call the family something else, or move it away")
    members = {value: spec.resolved() for value, spec in family.members.items()}
    with atomic_file(directory / FAMILY) as file:
        file.write_text(
            json.dumps({"across": family.across, "members": members, "failed": dict(failed)}, indent=1) + "\n"
        )


def load_known_family(directory: Path) -> Family:
    """The family of a directory; wherever it was moved with its members, there it is.

    Raises:
        UserError: this is no family's directory, or it is damaged.
    """
    directory = directory.expanduser().resolve()
    known, here = read_family(directory), {"storage": str(directory.parent)}
    members = {value: load_resolved(document | here) for value, document in known["members"].items()}
    return Family(directory.name, known["across"], members)


def find_sweeps(target: Path) -> SweepSpec | Family | None:
    """What a file or a family's directory stands for; None for any other directory."""
    if is_family(target):
        return load_known_family(target)
    return None if target.is_dir() else load_file(target)
