"""Feature banks in a store that all machines of a cluster can read: a shared directory, or an object store by its URL.

The driver publishes a bank once, under its fingerprint, and writes the manifest last. Workers open a bank in a shared
directory in place, and download one from a URL once per machine. A downloaded bank is verified when it is opened, like
every bank.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lt_train.core.errors import BankError, LongtailError, StorageError, first_line
from lt_train.core.io import atomic_directory, set_aside, writing
from lt_train.features.bank import FeatureBank
from lt_train.features.files import MANIFEST, open_bank, read_manifest

__all__ = ["CACHE_VARIABLE", "fetch_bank", "open_published_bank", "publish_bank"]

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "LT_SWEEP_CACHE"
"""Environment variable with the directory for downloaded banks."""


def publish_bank(bank: Path, store: str) -> None:
    """Copy a bank into a store, unless the store has it. One whose manifest is damaged or of another bank is replaced.

    In a directory it is kept as `<name>.damaged`.

    Args:
        bank: a directory that `lt_train.features.files.write_bank` wrote; its name is the bank's fingerprint.
        store: a directory, or a URL such as `s3://bucket/banks`.

    Raises:
        LongtailError: the URL has an unknown scheme.
        StorageError: the store cannot be reached or written, or is full.
    """
    if not _is_url(store):
        target = Path(store) / bank.name
        if target.is_dir() and not _is_bank(target, store):
            set_aside(target)
        if not target.is_dir():
            with atomic_directory(target) as directory:
                shutil.copytree(bank, directory, dirs_exist_ok=True)
        return
    with _translate_errors(store, "write to"):
        files, place = _file_system(store)
        manifest = f"{place}/{bank.name}/{MANIFEST}"
        if _exists(files, manifest):
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / bank.name
                copy.mkdir()
                with files.open_input_stream(manifest) as source:
                    (copy / MANIFEST).write_bytes(source.read())
                if _is_bank(copy, _without_credentials(store)):
                    return
            files.delete_file(manifest)  # so that no worker downloads a mix of two banks
        files.create_dir(f"{place}/{bank.name}", recursive=True)  # needed where directories exist
        names = sorted((file.name for file in bank.iterdir()), key=lambda name: name == MANIFEST)
        for name in names:
            with (bank / name).open("rb") as source, files.open_output_stream(f"{place}/{bank.name}/{name}") as target:
                shutil.copyfileobj(source, target, 2**22)


def _is_bank(bank: Path, store: str) -> bool:
    """Whether the manifest in `bank`, or a copy of it, is sound and that of its name; logs a warning if not."""
    try:
        read_manifest(bank)
    except BankError as error:
        reason = first_line(error).partition(": ")[2].rpartition("; ")[0] or "it is not a feature bank"
        logger.warning("bank %s in %s is damaged (%s); it is published again", bank.name, store, reason)
        return False
    return True


def fetch_bank(fingerprint: str, store: str) -> Path:
    """The directory of a published bank: in a shared directory in place, else a copy downloaded once per machine.

    Raises:
        LongtailError: the store does not have the bank.
        StorageError: the store cannot be reached, or this machine's disk is full or not writable.
    """
    if not _is_url(store):
        bank = Path(store) / fingerprint
        if not bank.is_dir():
            raise LongtailError(f"bank {fingerprint[:12]} is not in {store}; all machines must share that directory")
        return bank
    bank = _cache() / fingerprint
    with _exclusive(bank):
        if not bank.is_dir():
            with atomic_directory(bank) as directory:
                _download(fingerprint, store, directory)
    return bank


def open_published_bank(fingerprint: str, store: str) -> FeatureBank:
    """Open a published bank; if this machine's copy is damaged, download it again.

    Raises:
        BankError: the published bank is damaged.
        LongtailError, StorageError: see `fetch_bank`.
    """
    bank = fetch_bank(fingerprint, store)
    try:
        return open_bank(bank)
    except BankError:
        if not _is_url(store):
            raise
        with _exclusive(bank):
            shutil.rmtree(bank, ignore_errors=True)
        return open_bank(fetch_bank(fingerprint, store))


def _download(fingerprint: str, store: str, into: Path) -> None:
    with _translate_errors(store, "read from"):
        files, place = _file_system(store)
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


def _file_system(store: str) -> tuple[Any, str]:
    """A pyarrow file system and the path in it; credentials come from the store's own environment variables."""
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        files, place = FileSystem.from_uri(store)
    except pyarrow.ArrowInvalid:  # a scheme that pyarrow does not support itself
        import fsspec

        inner, place = fsspec.core.url_to_fs(store)
        files = PyFileSystem(FSSpecHandler(inner))
    return files, place.rstrip("/")


def _exists(files: Any, path: str) -> bool:
    from pyarrow.fs import FileType

    return bool(files.get_file_info(path).type == FileType.File)


@contextlib.contextmanager
def _translate_errors(store: str, action: str) -> Iterator[None]:
    """Raise errors of a store as `StorageError`, or `LongtailError` if a retry cannot help, without credentials."""
    try:
        yield
    except LongtailError:
        raise
    except (OSError, ValueError, ImportError) as error:
        kind = StorageError if isinstance(error, OSError) else LongtailError
        raise kind(f"cannot {action} the bank store {_without_credentials(store)}: {first_line(error)}") from error


def _without_credentials(store: str) -> str:
    scheme, _, rest = store.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def _cache() -> Path:
    directory = os.environ.get(CACHE_VARIABLE)
    return Path(directory) if directory else Path(tempfile.gettempdir()) / f"lt-sweep-{os.getuid()}"


@contextlib.contextmanager
def _exclusive(bank: Path) -> Iterator[None]:
    """Lock a bank in this machine's cache, so that one process at a time downloads it."""
    with writing(bank):
        bank.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = bank.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
