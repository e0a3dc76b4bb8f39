"""An extraction under way: the files of a bank to be, beside its place, and a durable list of what is in them.

`<store>/<fingerprint>.partial` holds the sets as safetensors files of their full length, filled in any order, so that
a bank is never held in memory and nothing is copied at the end. A line of the journal says that rows are on disk; it is
written after them. Whoever fills it holds its lock. Knows files and tensors; nothing of images or networks.
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
from lt_train.core.io import sync, writing
from lt_train.core.tensor_file import allocate, tensor_offsets
from lt_train.features.shards import ShardResult

__all__ = ["Partial", "SetShape", "alone"]

_LOCK, _PLAN, _JOURNAL = "lock", "plan.json", "journal.jsonl"

SYNC_SECONDS = 2.0
"""How much work a kill may cost: as often is what was done put on disk, and then the list of it."""


@dataclass(frozen=True)
class SetShape:
    """What of a set is known beforehand: views, and labels, int64 `[N]`."""

    views: int
    labels: Tensor


@contextlib.contextmanager
def alone(bank: Path, waiting: Callable[[str], None]) -> Iterator[Path]:
    """The directory of what is unfinished of `bank`, which no other process uses meanwhile.

    Afterwards it is gone where the bank is there, or where nothing was done that a next call could go on with.

    Args:
        bank: where the bank will be. Look there once more: who had the directory before may have finished.
        waiting: told who has it, where somebody has.

    Raises:
        StorageError: the place cannot be written.
    """
    path = bank.with_name(f"{bank.name}.partial")
    with contextlib.ExitStack() as stack:
        with writing(path):
            lock = _locked(path, waiting, stack)
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
        try:
            yield path
        finally:
            if bank.is_dir() or not _has_begun(path):
                _remove(path)


def _locked(path: Path, waiting: Callable[[str], None], stack: contextlib.ExitStack) -> TextIO:
    while True:
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            lock = stack.enter_context((path / _LOCK).open("a+"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                waiting(lock.read())
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever had it may have removed the directory, and this lock with it.
            if os.fstat(lock.fileno()).st_ino == (path / _LOCK).stat().st_ino:
                return lock
        stack.close()


def _has_begun(path: Path) -> bool:
    journal = path / _JOURNAL
    return journal.exists() and journal.stat().st_size > 0


def _remove(path: Path) -> None:
    """Remove all that lies there; the lock last, since others wait for it."""
    for entry in path.iterdir():
        if entry.name != _LOCK:
            entry.unlink()
    (path / _LOCK).unlink()
    with contextlib.suppress(OSError):  # another process has begun to look here
        path.rmdir()


class Partial:
    """The sets of one bank, partly filled; use within `alone`."""

    def __init__(
        self, path: Path, plan: Mapping[str, Any], sets: Mapping[str, SetShape], feature_dim: int, dtype: torch.dtype
    ) -> None:
        """Go on with what lies in `path`, or begin anew where nothing does, or something of another plan (`discarded`).

        Args:
            path: from `alone`.
            plan: JSON that decides the bits of features beside what is in the bank's fingerprint.
            sets: the sets by name.
            feature_dim: D.
            dtype: of the features on disk.

        Raises:
            StorageError: there is no room for the whole bank.
        """
        self.path, self.sets, self.feature_dim, self.dtype = path, dict(sets), feature_dim, dtype
        self.done: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self.unreadable: dict[str, dict[int, str]] = {name: {} for name in sets}
        self.discarded = ""
        if (there := self._plan_there()) != dict(plan):
            if there is not None and _has_begun(path):
                other = ", ".join(f"{name} {there.get(name)}" for name in plan if there.get(name) != plan[name])
                self.discarded = f"begun anew: what was half done was extracted with {other}"
            self._begin(plan)
        self._read_journal()
        self._files = {name: (path / f"{name}.safetensors").open("r+b", buffering=0) for name in sets}
        self._offsets = {name: tensor_offsets(path / f"{name}.safetensors")["features"] for name in sets}
        self._journal = (path / _JOURNAL).open("a")
        self._unlisted: list[str] = []
        self._listed = time.monotonic()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._list()
        finally:
            with writing(self.path):  # what a full disk did not take, closing the journal writes again
                for file in (*self._files.values(), self._journal):
                    file.close()

    @property
    def images(self) -> int:
        """How many rows are filled."""
        return sum(stop - start for stretches in self.done.values() for start, stop in stretches)

    def missing(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """Stretches of rows that are not filled, by set and view."""
        return {
            (name, view): list(_gaps(self.done.get((name, view), []), len(shape.labels)))
            for name, shape in self.sets.items()
            for view in range(shape.views)
        }

    def add(self, done: ShardResult) -> None:
        """Put the features of a shard in their place.

        Raises:
            BankError: a feature is beyond what the bank's dtype can say.
            StorageError: the disk is full after all.
        """
        part, view, start, stop = done.shard
        features = torch.from_numpy(done.features).to(self.dtype)
        self._check_range(done, features)
        row = self.feature_dim * features.element_size()
        with writing(self.path):
            place = self._offsets[part] + (view * len(self.sets[part].labels) + start) * row
            _write_at(self._files[part].fileno(), features.contiguous().numpy().tobytes(), place)
            self._note(
                {"shard": [part, view, start, stop], "unreadable": {str(k): v for k, v in done.unreadable.items()}}
            )
            if time.monotonic() - self._listed >= SYNC_SECONDS:
                self._list()

    def _check_range(self, done: ShardResult, stored: Tensor) -> None:
        """Refuse finite features that became infinite as they were stored."""
        if stored.dtype == torch.float32 or not stored.isinf().any():
            return
        given = torch.from_numpy(done.features)
        rows = (stored.isinf() & given.isfinite()).nonzero()
        for place, feature in rows.tolist():
            if done.shard.start + place not in done.unreadable:
                raise BankError(
                    f"features.dtype float16 holds magnitudes up to {torch.finfo(torch.float16).max:.0f}, and feature "
                    f"{feature} of {done.shard.part} image {done.shard.start + place} is "
                    f"{float(given[place, feature]):.6g}; use dtype float32"
                )

    def finished(self, kept: Mapping[str, Tensor]) -> dict[str, Path]:
        """The file of every set, whole, for the bank to be made of; close this first.

        Args:
            kept: rows that are to stay, int64, of the sets that shall not have all of theirs.
        """
        files = {name: self.path / f"{name}.safetensors" for name in self.sets}
        with writing(self.path):
            for name, rows in kept.items():
                files[name] = self._fewer(files[name], name, rows)
        return files

    def _fewer(self, whole: Path, name: str, rows: Tensor) -> Path:
        """The set without some of its rows, in another file, a view at a time and little of it in memory."""
        shape, file = self.sets[name], self.path / f"{name}.kept.safetensors"
        later = {"features": (self.dtype, (shape.views, len(rows), self.feature_dim))}
        allocate(file, {"labels": shape.labels[rows]}, later)
        there, here = tensor_offsets(whole)["features"], tensor_offsets(file)["features"]
        size = self.feature_dim * self.dtype.itemsize
        with whole.open("rb") as source, file.open("r+b") as target:
            target.seek(here)
            for view in range(shape.views):
                for first, last in _stretches(rows.tolist()):
                    source.seek(there + (view * len(shape.labels) + first) * size)
                    _copy(source, target, (last + 1 - first) * size)
        return file

    def _plan_there(self) -> Any:
        try:
            there = json.loads((self.path / _PLAN).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return there if isinstance(there, dict) else None

    def _begin(self, plan: Mapping[str, Any]) -> None:
        with writing(self.path):
            for entry in self.path.iterdir():
                if entry.name != _LOCK:
                    entry.unlink()
            for name, shape in self.sets.items():
                later = {"features": (self.dtype, (shape.views, len(shape.labels), self.feature_dim))}
                allocate(self.path / f"{name}.safetensors", {"labels": shape.labels}, later)
                sync(self.path / f"{name}.safetensors")
            unfinished = self.path / f"{_PLAN}.tmp"
            unfinished.write_text(json.dumps(dict(plan)))
            sync(unfinished)
            unfinished.replace(self.path / _PLAN)
            sync(self.path)

    def _read_journal(self) -> None:
        """Take in what is listed; a line that a kill cut short says nothing, and is cut off.

        Shards with images that could not be read are done again: by now those may be there, or mended.
        """
        file = self.path / _JOURNAL
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(file, len(whole))
        for line in whole.decode().splitlines():
            if not (entry := json.loads(line))["unreadable"]:
                self._take(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        self._take(entry)
        self._unlisted.append(json.dumps(entry) + "\n")

    def _take(self, entry: Mapping[str, Any]) -> None:
        part, view, start, stop = entry["shard"]
        self.done.setdefault((part, view), []).append((start, stop))
        self.unreadable[part] |= {int(row): why for row, why in entry["unreadable"].items()}

    def _list(self) -> None:
        """Put on disk what was added since the last time, and then say so there."""
        if self._unlisted:
            with writing(self.path):
                for file in self._files.values():
                    os.fdatasync(file.fileno())
                self._journal.write("".join(self._unlisted))
                self._journal.flush()
                os.fdatasync(self._journal.fileno())
            self._unlisted = []
        self._listed = time.monotonic()


def _gaps(stretches: list[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """What of `0 .. length` lies in none of `stretches`."""
    reached = 0
    for start, stop in sorted(stretches):
        if start > reached:
            yield reached, start
        reached = max(reached, stop)
    if reached < length:
        yield reached, length


def _stretches(rows: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of every run of consecutive numbers; `rows` ascend."""
    first = last = -1
    for row in rows:
        if last >= 0 and row != last + 1:
            yield first, last
            first = row
        elif last < 0:
            first = row
        last = row
    if last >= 0:
        yield first, last


def _write_at(handle: int, content: bytes, place: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(handle, left, place)
        left, place = left[written:], place + written


def _copy(source: Any, target: Any, size: int) -> None:
    while size:
        block = source.read(min(size, 2**22))
        target.write(block)
        size -= len(block)
