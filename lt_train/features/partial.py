"""An unfinished extraction: the files of a future bank, and a durable journal of the rows already written.

`<store>/<fingerprint>.partial` holds the sets as safetensors files of full length, filled in any order, so that a bank
is never held in memory and nothing is copied at the end. A journal line means that rows are on disk; it is written
after them and holds their digest, which is verified when the work is resumed and when it is finished. Damaged rows are
extracted again. A directory that contains anything but files is set aside as a whole. The process that fills the
directory holds its lock.
Shapes: V views, N images, D features.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from lt_train.core.errors import BankError, StorageError
from lt_train.core.io import allocate, atomic_file, digest, parse_json, set_aside, sync, tensor_offsets, writing
from lt_train.features.shards import ShardResult

__all__ = ["PartialBank", "SetShape", "exclusive"]

_LOCK, _PLAN, _JOURNAL = "lock", "plan.json", "journal.jsonl"

logger = logging.getLogger(__name__)

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
        if path.exists() and not path.is_dir():
            _discard(path, path)
        path.mkdir(parents=True, exist_ok=True)
        if _is_irregular(path / _LOCK):
            _discard(path, path / _LOCK)
            continue
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
                if not (irregular := list(filter(_is_irregular, path.iterdir()))):
                    return lock
                _discard(path, irregular[0])
        stack.close()


def _is_irregular(entry: Path) -> bool:
    """Whether an entry exists and is not a file, such as a directory or a link to nothing."""
    return os.path.lexists(entry) and not entry.is_file()


def _discard(path: Path, entry: Path) -> None:
    """Set aside the unfinished extraction in `path`, in which `entry` is damaged."""
    logger.warning(
        "%s is not as it was written; %s is kept as %s, and all features are extracted again",
        entry,
        path.name,
        set_aside(path).name,
    )


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
        self._plan = dict(plan)
        self.done: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self.unreadable: dict[str, dict[int, str]] = {name: {} for name in sets}
        self._entries: list[Mapping[str, Any]] = []  # of the journal, whose features are intact
        self.discarded = ""
        if (existing := self._read_plan()) != dict(plan):
            if _resumable(path):
                if existing is None:
                    self.discarded = f"restarted: {_PLAN} of the interrupted extraction is damaged"
                    logger.warning("%s is damaged; extracting all features again", path / _PLAN)
                else:
                    other = [f"{name} {existing.get(name)}" for name in plan if existing.get(name) != plan[name]]
                    self.discarded = f"restarted: the interrupted extraction used {', '.join(other)}"
            self._start(plan)
        self._write_known()
        self._offsets = {name: tensor_offsets(path / f"{name}.safetensors")["features"] for name in sets}
        self._files = {name: (path / f"{name}.safetensors").open("r+b", buffering=0) for name in sets}
        self._read_journal()
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
        content = features.contiguous().numpy().tobytes()
        entry: dict[str, Any] = {"shard": [part, view, start, stop]}
        entry["unreadable"] = {str(row): why for row, why in done.unreadable.items()}
        entry["digest"] = self._digest(entry, content)
        with writing(self.path):
            _write_at(self._files[part].fileno(), content, self._position(part, view, start))
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

        Raises:
            StorageError: features are not the ones that were written, or the disk is full.
        """
        self._write_known()
        if damaged := [entry for entry in self._entries if not self._is_intact(entry)]:
            raise StorageError(
                f"{self._describe(damaged)}; check the disk, then run the same command again to extract these features"
            )
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

    def _allocate(self, name: str, views: int, labels: Tensor, *, keep: bool = False) -> Path:
        file, shape = self.path / name, (views, len(labels), self.feature_dim)
        allocate(file, {"labels": labels}, {"features": (self.dtype, shape)}, keep=keep)
        return file

    def _read_plan(self) -> Any:
        try:
            plan = parse_json((self.path / _PLAN).read_text())
        except (OSError, ValueError):
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

    def _write_known(self) -> None:
        """Write headers and labels again, which are known, so that damage to them has no effect."""
        with writing(self.path):
            for name, shape in self.sets.items():
                self._allocate(f"{name}.safetensors", shape.views, shape.labels, keep=True)

    def _read_journal(self) -> None:
        """Read the finished shards whose features are intact; a last line that a kill truncated is removed.

        Shards with unreadable images are extracted again, because the images may have been fixed since.
        """
        file = self.path / _JOURNAL
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(file, len(whole))
        lines = whole.splitlines()
        entries = [entry for line in lines if (entry := self._entry(line)) is not None]
        damaged = []
        for entry in entries:
            if not entry["unreadable"]:
                if self._is_intact(entry):
                    self._record(entry)
                else:
                    damaged.append(entry)
        if len(entries) < len(lines):
            count = len(lines) - len(entries)
            logger.warning("%s: %d of %d lines are damaged; extracting their features again", file, count, len(lines))
        if damaged:
            logger.warning("%s; extracting them again", self._describe(damaged))
        if damaged or len(entries) < len(lines):
            with atomic_file(file) as temporary:
                temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self._entries))

    def _entry(self, line: bytes) -> dict[str, Any] | None:
        """A line of the journal, or None if it is damaged."""
        try:
            entry = parse_json(line)
            part, view, start, stop = entry["shard"]
            views, images = self.sets[part].views, len(self.sets[part].labels)
            known = isinstance(entry["unreadable"], dict) and isinstance(entry["digest"], str)
            whole = all(isinstance(number, int) for number in (view, start, stop))
            return entry if known and whole and 0 <= view < views and 0 <= start < stop <= images else None
        except (ValueError, TypeError, KeyError):
            return None

    def _describe(self, damaged: Sequence[Mapping[str, Any]]) -> str:
        count = sum(stop - start for _, _, start, stop in (entry["shard"] for entry in damaged))
        names = sorted({entry["shard"][0] for entry in damaged})
        files = ", ".join(f"{name}.safetensors" for name in names)
        return f"{self.path}: the features of {count} images in {files} do not match their digests in {_JOURNAL}"

    def _is_intact(self, entry: Mapping[str, Any]) -> bool:
        """Whether the features of a shard on disk, and its journal entry, are those that were written."""
        part, view, start, stop = entry["shard"]
        try:
            with (self.path / f"{part}.safetensors").open("rb") as file:
                file.seek(self._position(part, view, start))
                content = file.read((stop - start) * self.feature_dim * self.dtype.itemsize)
        except OSError:
            return False
        return bool(entry["digest"] == self._digest(entry, content))

    def _digest(self, entry: Mapping[str, Any], content: bytes) -> str:
        """The digest of the features of a shard, and of what the journal and the plan say about them."""
        about = [self._plan, entry["shard"], entry["unreadable"]]
        return digest(json.dumps(about, sort_keys=True).encode() + content)

    def _position(self, part: str, view: int, row: int) -> int:
        """Offset of the features of an image in its file, in bytes."""
        rows = view * len(self.sets[part].labels) + row
        return self._offsets[part] + rows * self.feature_dim * self.dtype.itemsize

    def _record(self, entry: Mapping[str, Any]) -> None:
        part, view, start, stop = entry["shard"]
        self._entries.append(entry)
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
