"""Durable files: everything written here is either whole or absent, whenever the process dies.

A file or directory is written beside its final name, synced and renamed. A full disk becomes a `StorageError` that
names the path and leaves nothing behind. Knows the standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lt_train.core.errors import StorageError, UserError

__all__ = ["atomic_directory", "atomic_file", "check_output", "fingerprint", "sha256_file", "sync", "writing"]

_ASKING = threading.Lock()

_LONGEST_NAME = 220
"""Bytes: what file systems take (255) less what temporary files and states of unfinished work add to a name."""


def check_output(path: Path) -> None:
    """Refuse a place that no file can be written to, before the work whose result it is for.

    Raises:
        UserError: `path` names a directory, or its name is too long.
    """
    if path.name in ("", "..") or path.is_dir():
        raise UserError(f"{path} is a directory, and a file is to be written; add a file name, such as {path}/out")
    size = len(os.fsencode(path.name))
    if size > _LONGEST_NAME:
        raise UserError(f"a file name must be at most {_LONGEST_NAME} bytes long, got {size} ({path.name})")


def fingerprint(document: Any) -> str:
    """sha256 (hex) of a JSON document in canonical form: sorted keys, no white space, no NaN."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OS-level write failure on `path` into a StorageError that says what to do.

    Raises:
        StorageError: the disk is full, read-only, over quota, or the directory may not be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "the disk is full" if full else (error.strerror or str(error))
        advice = "free some space" if full else "make the place writable"
        raise StorageError(
            f"cannot write {path}: {why}; {advice} and run the same command again, nothing finished was lost"
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it over `path`.

    Raises:
        StorageError: the file could not be written; the temporary file is removed and `path` is as before.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success sync its files and rename it to `path`.

    If another process finished the same directory first, theirs stays: contents are addressed by name.

    Raises:
        StorageError: something in it could not be written; the temporary directory is removed.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                sync(file)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The process's umask: temporary files are private, finished ones belong to whoever may read the storage.

    Read without being set where the system tells it: another thread may be asking, or making a file, meanwhile.
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    with _ASKING:
        mask = os.umask(0)
        os.umask(mask)
        return mask


def sync(path: Path) -> None:
    """Force a file or directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
