"""How far a sweep is: one small document that its driver keeps true and that people and programs read.

It lies beside the ledger as `progress.json`; a driver that runs as a Ray job also prints it, a line now and then, so
that it can be followed from a machine that sees nothing of the cluster's disks. Knows no search and no Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lt_train.core.errors import StorageError
from lt_train.core.io import atomic_file

__all__ = ["JOB_VARIABLE", "Best", "Progress", "Publisher", "last_printed", "read_progress", "without_progress"]

JOB_VARIABLE = "LT_SWEEP_JOB"
"""Environment variable with the id of the Ray job that a driver is."""

MARK = "lt-progress "
"""What stands before progress in a job's log."""

EVERY = {"file": 1.0, "line": 5.0}
"""Seconds between two updates at least, but for the last."""


class Best(BaseModel):
    """The best trial so far, by what the protocol selects on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: str
    objective: float
    protocol: str


class Progress(BaseModel):
    """What `progress.json` and `lt-sweep status --json` hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    sweep: str
    state: Literal["preparing", "running", "finished", "failed", "stopped"]
    note: str = Field(default="", description="what it is at, or why it failed")
    trials_finished: int = 0
    trials_failed: int = 0
    trials_stopped: int = Field(default=0, description="stopped early by the scheduler; finished too")
    trials: int = Field(default=0, description="finished in the end")
    runs_finished: int = 0
    runs: int = 0
    part: str = Field(
        default="", description="what trials and runs are of, where that is not all: of a matrix, as sweeps"
    )
    runs_per_second: float | None = Field(default=None, description="trained by this driver since its first trial")
    seconds_left: float | None = None
    best: Best | None = Field(default=None, description="of the search; a finalist may win over it")
    winner: str = Field(default="", description="of a finished sweep, with its test accuracy and gains, in a line")
    packs_lost: int = Field(default=0, description="tried again because their machine died")
    packs_failed: int = Field(default=0, description="tried again, or cut, because their process died")
    tracking_behind: int = Field(default=0, description="finished trials that tracking does not show yet")
    tracking_trouble: str = Field(default="", description="why, where the last call to it failed")
    driver: str = ""
    started_ms: int = 0
    at_ms: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of this attempt."""
        return self.state in ("finished", "failed", "stopped")


class Publisher:
    """Keeps a sweep's progress true where people look. May be called from any thread; never fails a sweep.

    Attributes:
        directory: the sweep's, where progress is written; None while nobody knows whether it is this sweep's.
    """

    def __init__(self, first: Progress, may_write: Callable[[], bool] = lambda: True) -> None:
        self.directory: Path | None = None
        self._job, self._may_write = os.environ.get(JOB_VARIABLE), may_write
        self._lock = threading.Lock()
        self._now = first
        self._ways = {"file": self._write, "line": self._print}
        self._told = dict.fromkeys(EVERY, 0.0)
        self._later: dict[str, threading.Timer] = {}
        self.update()

    def update(self, *, at_once: bool = False, **changes: Any) -> None:
        """Take note of what changed, and tell it when it is time; a change of state is always told at once."""
        with self._lock:
            before, now = self._now, time.time_ns() // 1_000_000
            self._now = before.model_copy(update=changes | {"at_ms": now})
            at_once = at_once or self._now.ended or self._now.state != before.state
            for way in EVERY:
                wait = self._told[way] + EVERY[way] - time.monotonic()
                if at_once or wait <= 0:
                    self._tell(way)
                elif way not in self._later:
                    self._later[way] = threading.Timer(wait, self._tell_later, [way])
                    self._later[way].daemon = True
                    self._later[way].start()

    def _tell_later(self, way: str) -> None:
        with self._lock:
            if way in self._later:  # and nothing newer was told since
                self._tell(way)

    def _tell(self, way: str) -> None:
        if timer := self._later.pop(way, None):
            timer.cancel()
        self._told[way] = time.monotonic()
        self._ways[way]()

    def _write(self) -> None:
        if self.directory is None or not self._may_write():
            return
        with contextlib.suppress(StorageError):  # a full disk is for the ledger to complain of
            with atomic_file(self.directory / "progress.json") as file:
                file.write_text(self._now.model_dump_json() + "\n")

    def _print(self) -> None:
        if self._job is not None:
            with contextlib.suppress(OSError):  # the disk of the log is full
                print(MARK + self._now.model_dump_json(), flush=True)


def read_progress(directory: Path) -> Progress | None:
    """What a sweep directory says of its sweep; None where it says nothing that can be read."""
    try:
        return Progress.model_validate_json((directory / "progress.json").read_text())
    except (OSError, ValidationError):
        return None


def last_printed(log: str) -> Progress | None:
    """The last progress that a job has printed, None before the first."""
    for line in reversed(log.splitlines()):
        _, mark, text = line.partition(MARK)  # whoever printed before may not have ended the line
        if mark:
            try:
                return Progress.model_validate(json.loads(text))
            except (ValueError, ValidationError):
                continue
    return None


def without_progress(log: str) -> str:
    """A job's log as people read it."""
    return "".join(_before(line) for line in log.splitlines(keepends=True))


def _before(line: str) -> str:
    text, mark, _ = line.partition(MARK)
    return f"{text}\n" if mark and text else text
