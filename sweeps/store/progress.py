"""Progress of a sweep as one small JSON document, kept current by its driver.

The driver writes it to `progress.json` beside the ledger. A driver that runs as a Ray job also prints it periodically,
so that the sweep can be followed from a machine without access to the cluster's disks.
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

from lt_train.core.clock import now_ms
from lt_train.core.errors import StorageError
from sweeps.store.layout import read_document, write_document

__all__ = [
    "JOB_VARIABLE",
    "PROGRESS",
    "BestTrial",
    "Progress",
    "Publisher",
    "last_progress",
    "read_progress",
    "strip_progress",
]

PROGRESS = "progress.json"
"""The file in a sweep directory."""

JOB_VARIABLE = "LT_SWEEP_JOB"
"""Environment variable with the id of the Ray job that the driver runs as."""


PROGRESS_PREFIX = "lt-progress "
"""Prefix of a progress line in a job's log."""


PUBLISH_INTERVALS = {"file": 1.0, "line": 5.0}
"""Minimum seconds between two updates of the file and between two printed lines."""


class BestTrial(BaseModel):
    """The best trial so far, by the protocol's objective."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: str
    objective: float
    protocol: str


class Progress(BaseModel):
    """The content of `progress.json` and of `lt-sweep status --json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    sweep: str
    state: Literal["preparing", "running", "finished", "failed", "stopped"]
    note: str = Field(default="", description="current activity, or the reason of a failure")
    trials_finished: int = 0
    trials_failed: int = 0
    trials_stopped: int = Field(default=0, description="trials stopped early; they count as finished, too")
    trials: int = Field(default=0, description="total number of trials")
    runs_finished: int = 0
    runs: int = Field(default=0, description="total number of runs")
    part: str = Field(
        default="", description="what `trials` and `runs` count, such as 3 of 5 sweeps of a matrix; empty: all"
    )
    runs_per_second: float | None = Field(default=None, description="rate of this driver since its first trial")
    seconds_left: float | None = None
    best: BestTrial | None = Field(default=None, description="best trial of the search; a finalist may win over it")
    winner: str = Field(default="", description="one line: winner of a finished sweep, test accuracy and gains")
    packs_lost: int = Field(default=0, description="packs rescheduled because their node failed")
    packs_failed: int = Field(default=0, description="packs retried or bisected because their process failed")
    tracking_behind: int = Field(default=0, description="finished trials not yet written to tracking")
    tracking_error: str = Field(default="", description="why the last call to tracking failed, if it did")
    driver: str = ""
    started_ms: int = 0
    at_ms: int = 0

    @property
    def ended(self) -> bool:
        """Whether this driver has ended."""
        return self.state in ("finished", "failed", "stopped")


class Publisher:
    """Publishes a sweep's progress. May be called from any thread; never fails a sweep.

    Attributes:
        directory: where `progress.json` is written; None until the sweep directory is known to belong to this sweep.
    """

    def __init__(self, first: Progress, may_write: Callable[[], bool] = lambda: True) -> None:
        self.directory: Path | None = None
        self._job, self._may_write = os.environ.get(JOB_VARIABLE), may_write
        self._lock = threading.Lock()
        self._now = first
        self._outputs = {"file": self._write, "line": self._print}
        self._published = dict.fromkeys(PUBLISH_INTERVALS, 0.0)
        self._timers: dict[str, threading.Timer] = {}
        self.update()

    def update(self, *, at_once: bool = False, **changes: Any) -> None:
        """Set fields of the progress and publish it once its interval is over; a new state is published at once."""
        with self._lock:
            before, now = self._now, now_ms()
            self._now = before.model_copy(update=changes | {"at_ms": now})
            at_once = at_once or self._now.ended or self._now.state != before.state
            for output in PUBLISH_INTERVALS:
                wait = self._published[output] + PUBLISH_INTERVALS[output] - time.monotonic()
                if at_once or wait <= 0:
                    self._publish(output)
                elif output not in self._timers:
                    self._timers[output] = threading.Timer(wait, self._publish_later, [output])
                    self._timers[output].daemon = True
                    self._timers[output].start()

    def _publish_later(self, output: str) -> None:
        with self._lock:
            if output in self._timers:  # nothing newer has been published since
                self._publish(output)

    def _publish(self, output: str) -> None:
        if timer := self._timers.pop(output, None):
            timer.cancel()
        self._published[output] = time.monotonic()
        self._outputs[output]()

    def _write(self) -> None:
        if self.directory is None or not self._may_write():
            return
        with contextlib.suppress(StorageError):  # the ledger reports a full disk
            write_document(self.directory / PROGRESS, self._now.model_dump(mode="json"))

    def _print(self) -> None:
        if self._job is not None:
            with contextlib.suppress(OSError):  # the disk of the log is full
                print(PROGRESS_PREFIX + self._now.model_dump_json(), flush=True)


def read_progress(directory: Path) -> Progress | None:
    """The progress in a sweep directory; None if there is none that can be read."""
    try:
        return Progress.model_validate(read_document(directory / PROGRESS))
    except ValidationError:
        return None


def last_progress(log: str) -> Progress | None:
    """The last progress printed in a job's log; None if there is none."""
    for line in reversed(log.splitlines()):
        _, prefix, text = line.partition(PROGRESS_PREFIX)  # it may follow other output on the same line
        if prefix:
            try:
                return Progress.model_validate(json.loads(text))
            except (ValueError, ValidationError):
                continue
    return None


def strip_progress(log: str) -> str:
    """A job's log without the progress in it."""
    return "".join(_strip(line) for line in log.splitlines(keepends=True))


def _strip(line: str) -> str:
    text, prefix, _ = line.partition(PROGRESS_PREFIX)
    return f"{text}\n" if prefix and text else text
