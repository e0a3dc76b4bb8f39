"""File names and small files of a storage, readable without loading a spec.

`<storage>/<name>/` is a sweep's directory if it holds `sweep.json` (identity and resolved spec), and a matrix's
directory if it holds `matrix.json`. `<storage>/cache/` is shared by all sweeps of the storage.

The driver of a sweep writes its progress to `progress.json` beside the ledger. A driver that runs as a Ray job also
prints it periodically, so that the sweep can be followed from a machine without access to the cluster's disks.

`lt-sweep status`, `stop` and `list` import this module only, so they start without torch and work for sweeps whose spec
names a plugin that is not installed. `sweeps.store.directory` reads the specs in these files.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lt_train.core.errors import StorageError, UserError
from lt_train.core.io import atomic_file

__all__ = [
    "CACHE",
    "IDENTITY",
    "JOB_VARIABLE",
    "MATRIX_FILE",
    "Best",
    "Progress",
    "Publisher",
    "SweepDirectory",
    "is_matrix",
    "last_progress",
    "leases",
    "matrix_sweeps",
    "read_identity",
    "read_matrix",
    "read_progress",
    "strip_progress",
    "sweep_directory",
]


IDENTITY = "sweep.json"
"""File that marks a sweep's directory."""

MATRIX_FILE = "matrix.json"
"""File that marks a matrix's directory."""

CACHE = "cache"
"""Directory of a storage with the `checkpoints`, `banks` and `locks` of all sweeps. Not allowed as a sweep's name."""

_IDENTITY_KEYS = {"sweep_id", "started_ms", "spec_fingerprint", "bank_fingerprint", "spec"}


@dataclass(frozen=True)
class SweepDirectory:
    """An existing sweep directory.

    Attributes:
        path: the directory. Its name is the sweep's name, its parent the storage.
        sweep_id: unique to this sweep and constant; identifies its MLflow runs.
        started_ms: when the sweep was first started, in milliseconds since 1970.
    """

    path: Path
    sweep_id: str
    started_ms: int

    @property
    def result(self) -> Path:
        """`result.json`, which exists once the sweep is finished."""
        return self.path / "result.json"

    @property
    def artifacts(self) -> Path:
        """Tables, figures and the resolved spec of a finished sweep."""
        return self.path / "artifacts"


def leases(storage: Path) -> Path:
    """Directory of the leases of a storage. It is outside the sweep directories because `--fresh` moves those."""
    return storage / CACHE / "locks"


def sweep_directory(path: Path) -> SweepDirectory:
    """The sweep in a directory. Its spec is not parsed.

    Raises:
        UserError: `path` is not a sweep directory, or its `sweep.json` is damaged.
    """
    path = path.expanduser().resolve()
    identity = path / IDENTITY
    if not identity.is_file():
        matrix = " (it is a matrix's directory; each of its sweeps has its own)" * (path / MATRIX_FILE).exists()
        raise UserError(
            f"{path} is not a sweep directory: it has no sweep.json{matrix}; start one with `lt-sweep run SPEC`"
        )
    document = read_identity(identity)
    return SweepDirectory(path, document["sweep_id"], document["started_ms"])


def is_matrix(directory: Path) -> bool:
    """Whether a directory belongs to a matrix."""
    return (directory.expanduser() / MATRIX_FILE).is_file()


def matrix_sweeps(directory: Path) -> dict[str, str]:
    """The names of a matrix's sweeps, each with the reason why it failed, or "". Their specs are not parsed.

    Raises:
        UserError: as `read_matrix`.
    """
    document = read_matrix(directory.expanduser().resolve())
    return {spec["name"]: document["failed"].get(value, "") for value, spec in document["sweeps"].items()}


def read_identity(identity: Path) -> dict[str, Any]:
    """The content of a `sweep.json`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        document = json.loads(identity.read_text())
    except ValueError:
        document = None
    if not isinstance(document, dict) or not document.keys() >= _IDENTITY_KEYS:
        raise UserError(f"{identity} is damaged; remove its directory to start the sweep over")
    return document


def read_matrix(directory: Path) -> dict[str, Any]:
    """The content of a `matrix.json`: the varied field, resolved specs by value, and failures by value.

    Raises:
        UserError: `directory` is not a matrix's directory, or its `matrix.json` is damaged.
    """
    file = directory / MATRIX_FILE
    try:
        document = json.loads(file.read_text())
        failed = dict(document.get("failed", {}))
        return {"matrix": document["matrix"], "sweeps": dict(document["sweeps"]), "failed": failed}
    except FileNotFoundError:
        raise UserError(f"{directory} is not a matrix's directory: it has no {MATRIX_FILE}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; `lt-sweep run` with the sweep file recreates it") from None


JOB_VARIABLE = "LT_SWEEP_JOB"
"""Environment variable with the id of the Ray job that the driver runs as."""

PREFIX = "lt-progress "
"""Prefix of a progress line in a job's log."""

INTERVALS = {"file": 1.0, "line": 5.0}
"""Minimum seconds between two updates of the file and between two printed lines."""


class Best(BaseModel):
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
    best: Best | None = Field(default=None, description="best trial of the search; a finalist may win over it")
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
        self._published = dict.fromkeys(INTERVALS, 0.0)
        self._timers: dict[str, threading.Timer] = {}
        self.update()

    def update(self, *, at_once: bool = False, **changes: Any) -> None:
        """Set fields of the progress and publish it once its interval is over; a new state is published at once."""
        with self._lock:
            before, now = self._now, time.time_ns() // 1_000_000
            self._now = before.model_copy(update=changes | {"at_ms": now})
            at_once = at_once or self._now.ended or self._now.state != before.state
            for output in INTERVALS:
                wait = self._published[output] + INTERVALS[output] - time.monotonic()
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
            with atomic_file(self.directory / "progress.json") as file:
                file.write_text(self._now.model_dump_json() + "\n")

    def _print(self) -> None:
        if self._job is not None:
            with contextlib.suppress(OSError):  # the disk of the log is full
                print(PREFIX + self._now.model_dump_json(), flush=True)


def read_progress(directory: Path) -> Progress | None:
    """The progress in a sweep directory; None if there is none that can be read."""
    try:
        return Progress.model_validate_json((directory / "progress.json").read_text())
    except (OSError, ValidationError):
        return None


def last_progress(log: str) -> Progress | None:
    """The last progress printed in a job's log; None if there is none."""
    for line in reversed(log.splitlines()):
        _, prefix, text = line.partition(PREFIX)  # it may follow other output on the same line
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
    text, prefix, _ = line.partition(PREFIX)
    return f"{text}\n" if prefix and text else text
