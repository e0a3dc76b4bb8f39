"""A SQLite store that is whole or not there: made under a name of its own, then put in place.

MLflow makes its tables with some thousand statements that no transaction holds together; what a killed process leaves
of them, no later start can go on with. Knows files; who makes the tables, it is told.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lt_train.core.io import sync, writing

__all__ = ["make_store", "sqlite_file", "unfinished"]

LEFT_SECONDS = 3600.0
"""After which a place where a store was being made is taken for one that a killed process left."""


def sqlite_file(uri: str) -> tuple[Path, str] | None:
    """The file of a SQLite address and what follows its name, such as `?timeout=30`; None for any other address.

    What SQLite reads itself (`file:...`, `:memory:`) is no name of a file.
    """
    name, mark, options = uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith("sqlite:///") or name in ("", ":memory:") or name.startswith("file:"):
        return None
    return Path(name), mark + options


def make_store(file: Path, make: Callable[[Path], None]) -> None:
    """Have `make` make the store, unless `file` is there. Of several at the same time, the first one's stays.

    Raises:
        StorageError: the disk is full or not writable.
    """
    _clear(file)
    if file.exists():
        return
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent))
        try:
            made = place / file.name
            make(made)
            sync(made)
            _put(made, file)
            sync(file.parent)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _clear(file: Path) -> None:
    """Remove what killed processes left of stores they were making."""
    for left in file.parent.glob(f".{file.name}.*.tmp"):
        with contextlib.suppress(OSError):  # another process removes it, too
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left)


def _put(made: Path, file: Path) -> None:
    """Give the store its name, without taking it from one that another process made meanwhile."""
    try:
        os.link(made, file)
    except FileExistsError:
        pass
    except OSError:  # a file system that knows one name a file; here two at once are not told apart
        if not file.exists():
            made.rename(file)


def unfinished(error: Exception, file: Path) -> str | None:
    """What to do about a store whose tables were made in part; None for another error."""
    said = ("already exists", "duplicate column name", "out-of-date database schema")
    if not any(words in str(error) for words in said):
        return None
    return (
        f"the MLflow store {file} is not whole: a process was killed while MLflow made or upgraded its tables. Move it "
        f"away (mv {file} {file}.broken) and run `lt-sweep resume` on each sweep that was shown in it: MLflow is "
        "written anew from their ledgers, and nothing is trained again"
    )
