"""An unfinished extraction: the files of a future bank, and a durable journal of the rows already written.

`<store>/<fingerprint>.partial` holds the sets as safetensors files of full length, filled in any order, so that a bank
is never held in memory and nothing is copied at the end. A journal line means that rows are on disk; it is written
after them. The process that fills the directory holds its lock.
Shapes: V views, N images, D features.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from lt_train.core.errors import BankError
from lt_train.core.io import allocate, sync, tensor_offsets, writing
from lt_train.features.shards import ShardResult

__all__ = ["PartialBank", "SetShape", "exclusive"]

_LOCK, _PLAN, _JOURNAL = "lock", "plan.json", "journal.jsonl"

SYNC_SECONDS = 2.0
"""Interval at which features and then the journal are synced to disk: the most work that a kill can lose."""


@dataclass(frozen=True)
class SetShape:
    """What is known of a set before extraction: number of views, and labels, int64 `[N]`."""

    views: int
    labels: Tensor


@contextlib.contextmanager
def exclusive(bank: Path, on_wait: Callable[[str], None]) -> Iterator[Path]:
    """Lock and yield the directory of the unfinished extraction of `bank`.

    On exit the directory is removed if the bank exists or if it holds nothing to resume.

    Args:
        bank: path of the future bank. Check again whether it exists: the previous owner may have finished it.
        on_wait: called with a description of the owner if another process holds the lock.

    Raises:
        StorageError: the directory cannot be written.
    """
    path = bank.with_name(f"{bank.name}.partial")
    with contextlib.ExitStack() as stack:
        with writing(path):
            lock = _lock(path, on_wait, stack)
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
        try:
            yield path
        finally:
            if bank.is_dir() or not _resumable(path):
                _remove(path)


def _lock(path: Path, on_wait: Callable[[str], None], stack: contextlib.ExitStack) -> TextIO:
    while True:
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            lock = stack.enter_context((path / _LOCK).open("a+"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                on_wait(lock.read())
                fcntl.flock(lock, fcntl.LOCK_EX)
            # The previous owner may have removed the directory with this lock file.
            if os.fstat(lock.fileno()).st_ino == (path / _LOCK).stat().st_ino:
                return lock
        stack.close()


def _resumable(path: Path) -> bool:
    journal = path / _JOURNAL
    return journal.exists() and journal.stat().st_size > 0


def _remove(path: Path) -> None:
    """Remove the directory; the lock file last, because other processes may wait for it."""
    for entry in path.iterdir():
        if entry.name != _LOCK:
            entry.unlink()
    (path / _LOCK).unlink()
    with contextlib.suppress(OSError):  # another process has created a lock file in it
        path.rmdir()


class PartialBank:
    """The partly filled sets of one bank; use within `exclusive`."""

    def __init__(
        self, path: Path, plan: Mapping[str, Any], sets: Mapping[str, SetShape], feature_dim: int, dtype: torch.dtype
    ) -> None:
        """Resume the work in `path`, or start over if there is none or if its plan differs (see `discarded`).

        Args:
            path: from `exclusive`.
            plan: JSON of everything outside the bank's fingerprint that affects the bits of features.
            sets: the sets by name.
            feature_dim: D.
            dtype: of the features on disk.

        Raises:
            StorageError: the disk has too little space for the whole bank.
        """
        self.path, self.sets, self.feature_dim, self.dtype = path, dict(sets), feature_dim, dtype
        self.done: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self.unreadable: dict[str, dict[int, str]] = {name: {} for name in sets}
        self.discarded = ""
        if (existing := self._read_plan()) != dict(plan):
            if existing is not None and _resumable(path):
                other = ", ".join(f"{name} {existing.get(name)}" for name in plan if existing.get(name) != plan[name])
                self.discarded = f"restarted: the interrupted extraction used {other}"
            self._start(plan)
        self._read_journal()
        self._files = {name: (path / f"{name}.safetensors").open("r+b", buffering=0) for name in sets}
        self._offsets = {name: tensor_offsets(path / f"{name}.safetensors")["features"] for name in sets}
        self._journal = (path / _JOURNAL).open("a")
        self._pending: list[str] = []
        self._synced = time.monotonic()

    def __enter__(self) -> PartialBank:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sync()
        finally:
            with writing(self.path):  # closing the journal retries what a full disk refused
                for file in (*self._files.values(), self._journal):
                    file.close()

    @property
    def images(self) -> int:
        """Number of rows that are filled."""
        return sum(stop - start for ranges in self.done.values() for start, stop in ranges)

    def missing(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """Ranges `(start, stop)` of rows that are not filled, by set and view."""
        return {
            (name, view): list(_gaps(self.done.get((name, view), []), len(shape.labels)))
            for name, shape in self.sets.items()
            for view in range(shape.views)
        }

    def add(self, done: ShardResult) -> None:
        """Write the features of a shard to their position.

        Raises:
            BankError: a feature is too large for the bank's dtype.
            StorageError: the disk is full.
        """
        part, view, start, stop = done.shard
        features = torch.from_numpy(done.features).to(self.dtype)
        self._check_range(done, features)
        row = self.feature_dim * features.element_size()
        with writing(self.path):
            position = self._offsets[part] + (view * len(self.sets[part].labels) + start) * row
            _write_at(self._files[part].fileno(), features.contiguous().numpy().tobytes(), position)
            entry = {"shard": [part, view, start, stop], "unreadable": {str(k): v for k, v in done.unreadable.items()}}
            self._record(entry)
            self._pending.append(json.dumps(entry) + "\n")
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()

    def _check_range(self, done: ShardResult, stored: Tensor) -> None:
        """Refuse finite features that overflow to infinity in the stored dtype."""
        if stored.dtype == torch.float32 or not stored.isinf().any():
            return
        given = torch.from_numpy(done.features)
        rows = (stored.isinf() & given.isfinite()).nonzero()
        for place, feature in rows.tolist():
            if done.shard.start + place not in done.unreadable:
                raise BankError(
                    f"features.dtype float16 stores magnitudes up to {torch.finfo(torch.float16).max:.0f}, and feature "
                    f"{feature} of {done.shard.part} image {done.shard.start + place} is "
                    f"{float(given[place, feature]):.6g}; use dtype float32"
                )

    def finished(self, kept: Mapping[str, Tensor]) -> dict[str, Path]:
        """The complete file of every set; call after closing.

        Args:
            kept: rows to keep, int64, for the sets of which rows are dropped.
        """
        files = {name: self.path / f"{name}.safetensors" for name in self.sets}
        with writing(self.path):
            for name, rows in kept.items():
                files[name] = self._without_dropped(files[name], name, rows)
        return files

    def _without_dropped(self, whole: Path, name: str, rows: Tensor) -> Path:
        """Copy the kept rows of a set to another file, in small blocks."""
        shape = self.sets[name]
        file = self._allocate(f"{name}.kept.safetensors", shape.views, shape.labels[rows])
        read_from, write_to = tensor_offsets(whole)["features"], tensor_offsets(file)["features"]
        size = self.feature_dim * self.dtype.itemsize
        with whole.open("rb") as source, file.open("r+b") as target:
            target.seek(write_to)
            for view in range(shape.views):
                for first, last in _runs(rows.tolist()):
                    source.seek(read_from + (view * len(shape.labels) + first) * size)
                    _copy(source, target, (last + 1 - first) * size)
        return file

    def _allocate(self, name: str, views: int, labels: Tensor) -> Path:
        file = self.path / name
        allocate(file, {"labels": labels}, {"features": (self.dtype, (views, len(labels), self.feature_dim))})
        return file

    def _read_plan(self) -> Any:
        try:
            plan = json.loads((self.path / _PLAN).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return plan if isinstance(plan, dict) else None

    def _start(self, plan: Mapping[str, Any]) -> None:
        with writing(self.path):
            for entry in self.path.iterdir():
                if entry.name != _LOCK:
                    entry.unlink()
            for name, shape in self.sets.items():
                sync(self._allocate(f"{name}.safetensors", shape.views, shape.labels))
            unfinished = self.path / f"{_PLAN}.tmp"
            unfinished.write_text(json.dumps(dict(plan)))
            sync(unfinished)
            unfinished.replace(self.path / _PLAN)
            sync(self.path)

    def _read_journal(self) -> None:
        """Read the finished shards; a last line that a kill truncated is removed.

        Shards with unreadable images are extracted again, because the images may have been fixed since.
        """
        file = self.path / _JOURNAL
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(file, len(whole))
        for line in whole.decode().splitlines():
            if not (entry := json.loads(line))["unreadable"]:
                self._record(entry)

    def _record(self, entry: Mapping[str, Any]) -> None:
        part, view, start, stop = entry["shard"]
        self.done.setdefault((part, view), []).append((start, stop))
        self.unreadable[part] |= {int(row): why for row, why in entry["unreadable"].items()}

    def _sync(self) -> None:
        """Sync the features added since the last call, then write and sync their journal lines."""
        if self._pending:
            with writing(self.path):
                for file in self._files.values():
                    os.fdatasync(file.fileno())
                self._journal.write("".join(self._pending))
                self._journal.flush()
                os.fdatasync(self._journal.fileno())
            self._pending = []
        self._synced = time.monotonic()


def _gaps(ranges: list[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """The parts of `0 .. length` outside all `ranges`."""
    reached = 0
    for start, stop in sorted(ranges):
        if start > reached:
            yield reached, start
        reached = max(reached, stop)
    if reached < length:
        yield reached, length


def _runs(rows: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of every run of consecutive numbers in `rows`, which ascend."""
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[place - 1] + 1:
            yield rows[start], rows[place - 1]
            start = place


def _write_at(handle: int, content: bytes, position: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(handle, left, position)
        left, position = left[written:], position + written


def _copy(source: Any, target: Any, size: int) -> None:
    while size:
        block = source.read(min(size, 2**22))
        target.write(block)
        size -= len(block)
