"""Banks in a place that every machine of a cluster can read: a shared directory, or an object store by its URL.

The driver publishes a bank once, under its fingerprint, the manifest last; a worker opens it where it lies, or fetches
it once for its machine. What was fetched is checked byte by byte when it is opened, like every bank. Knows banks as
directories, and file systems; knows no Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lt_train.core.errors import BankError, LongtailError, StorageError, first_line
from lt_train.core.io import atomic_directory, writing
from lt_train.features.bank import FeatureBank
from lt_train.features.files import MANIFEST, open_bank

__all__ = ["CACHE_VARIABLE", "fetched", "obtain", "publish"]

CACHE_VARIABLE = "LT_SWEEP_CACHE"
"""Environment variable that names the directory where a machine keeps banks it has fetched."""


def publish(bank: Path, store: str) -> None:
    """Put the bank directory `bank` into `store` under its own name, unless it is there.

    Args:
        bank: as `lt_train.features.files.write_bank` made it; its name is its fingerprint.
        store: a directory, or a URL such as `s3://bucket/banks`.

    Raises:
        LongtailError: there is no such kind of store.
        StorageError: it cannot be reached or written, or is full.
    """
    if not _is_url(store):
        target = Path(store) / bank.name
        if not target.is_dir():
            with atomic_directory(target) as directory:
                shutil.copytree(bank, directory, dirs_exist_ok=True)
        return
    with _reached(store, "written"):
        files, place = _opened(store)
        if _exists(files, f"{place}/{bank.name}/{MANIFEST}"):
            return
        files.create_dir(f"{place}/{bank.name}", recursive=True)  # for stores that have directories
        names = sorted((file.name for file in bank.iterdir()), key=lambda name: name == MANIFEST)
        for name in names:
            with (bank / name).open("rb") as source, files.open_output_stream(f"{place}/{bank.name}/{name}") as target:
                shutil.copyfileobj(source, target, 2**22)


def obtain(fingerprint: str, store: str) -> Path:
    """The directory of a published bank: in a shared store its own, else a copy that this machine fetches once.

    Raises:
        LongtailError: it is not there.
        StorageError: the store cannot be reached, or this machine's disk is full or not writable.
    """
    if not _is_url(store):
        bank = Path(store) / fingerprint
        if not bank.is_dir():
            raise LongtailError(f"bank {fingerprint[:12]} is not in {store}: is that directory shared by all machines?")
        return bank
    bank = _cache() / fingerprint
    with _alone(bank):
        if not bank.is_dir():
            with atomic_directory(bank) as directory:
                _fetch(fingerprint, store, directory)
    return bank


def fetched(fingerprint: str, store: str) -> FeatureBank:
    """A published bank, open; a copy on this machine that was damaged since is fetched once more.

    Raises:
        BankError: what is published is damaged.
        LongtailError, StorageError: as `obtain`.
    """
    bank = obtain(fingerprint, store)
    try:
        return open_bank(bank)
    except BankError:
        if not _is_url(store):
            raise
        with _alone(bank):
            shutil.rmtree(bank, ignore_errors=True)
        return open_bank(obtain(fingerprint, store))


def _fetch(fingerprint: str, store: str, into: Path) -> None:
    with _reached(store, "read"):
        files, place = _opened(store)
        if not _exists(files, f"{place}/{fingerprint}/{MANIFEST}"):
            raise LongtailError(f"bank {fingerprint[:12]} is not in {store}")
        from pyarrow.fs import FileSelector

        for entry in files.get_file_info(FileSelector(f"{place}/{fingerprint}")):
            with files.open_input_stream(entry.path) as source, (into / entry.base_name).open("wb") as target:
                while block := source.read(2**22):
                    with writing(into):
                        target.write(block)


def _is_url(store: str) -> bool:
    return "://" in store


def _opened(store: str) -> tuple[Any, str]:
    """A pyarrow file system and the path in it; credentials come from the environment, as the store's own tools do."""
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        files, place = FileSystem.from_uri(store)
    except pyarrow.ArrowInvalid:  # a scheme that pyarrow does not speak itself
        import fsspec

        inner, place = fsspec.core.url_to_fs(store)
        files = PyFileSystem(FSSpecHandler(inner))
    return files, place.rstrip("/")


def _exists(files: Any, path: str) -> bool:
    from pyarrow.fs import FileType

    return bool(files.get_file_info(path).type == FileType.File)


@contextlib.contextmanager
def _reached(store: str, doing: str) -> Iterator[None]:
    """What a store answers as one of our errors, without the credentials that may stand in its URL."""
    try:
        yield
    except LongtailError:
        raise
    except (OSError, ValueError, ImportError) as error:
        kind = StorageError if isinstance(error, OSError) else LongtailError  # of which the first may pass
        raise kind(f"the bank store {_shown(store)} cannot be {doing}: {first_line(error)}") from error


def _shown(store: str) -> str:
    scheme, _, rest = store.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def _cache() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"lt-sweep-{os.getuid()}"


@contextlib.contextmanager
def _alone(bank: Path) -> Iterator[None]:
    """One process of this machine at a time fetches; the others find what it fetched."""
    with writing(bank):
        bank.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = bank.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
