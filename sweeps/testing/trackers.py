"""`check_tracker`: calls a tracker as a sweep does that is interrupted, resumed and run again after its end."""

from __future__ import annotations

import difflib
import pprint
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lt_train.core.imports import require
from lt_train.testing import check_kind
from sweeps.config.interfaces import Champion, TrackedSweep, TrackedTrial, Tracker, TrackingSpec
from sweeps.experiment.events import Event, SweepFinished, SweepStarted, TrialFinished
from sweeps.experiment.listeners import champion, parent_metrics, tracked_sweep
from sweeps.experiment.runner import run
from sweeps.testing.sweep import small_sweep
from sweeps.tracking.content import tracked_trial

__all__ = ["check_tracker"]

Shown = Callable[[Path], Any]


def check_tracker(tracking: TrackingSpec | type[TrackingSpec], shown: Shown | None = None) -> None:
    """Check a tracker with the content of a small sweep that has finished, stopped and failed trials.

    - `lt_train.testing.check_kind`.
    - Every call may be repeated, in a sweep that is interrupted, in one that is resumed, and in one that is run again
      after its end. Calls are made from another thread than the main one, as in a sweep.
    - Files in the storage have names that begin with `own_files`.
    - Repeated calls show nothing twice and change nothing; checked only if `shown` is given.

    Args:
        tracking: an instance, or a class whose fields have defaults.
        shown: reads what the tracker shows of a storage, in a form that can be compared. It must not contain the state
            of a sweep, such as running or finished, nor times of calls.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(tracking, TrackingSpec)
    require(*checked.libraries)
    with tempfile.TemporaryDirectory(prefix="lt-conformance-") as place:
        content = _content(Path(place))
        storage = Path(place) / "storage"
        storage.mkdir()
        checked.prepare(storage)
        _Session(checked.for_sweep(content.sweep.name), storage, content, shown).check()
        own, name = checked.own_files, type(checked).__name__
        for path in storage.iterdir():
            assert path.name.startswith(own or "/"), (
                f"{name} writes {path.name} to the storage, where sweeps have their directories; set {name}.own_files "
                "to the common prefix of its files"
            )


@dataclass
class _Content:
    """What a tracker receives of one sweep."""

    trials: list[TrackedTrial] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    champion: Champion | None = None
    artifacts: Path = Path()
    started: SweepStarted | None = None

    @property
    def sweep(self) -> TrackedSweep:
        """The parent run."""
        assert self.started is not None
        return tracked_sweep(self.started.spec, self.started.directory, self.started.bank)

    def collect(self, event: Event) -> None:
        """Keep the content of an event while the sweep's ledger is open."""
        match event:
            case SweepStarted():
                self.started = event
            case TrialFinished(runs=runs) if self.started is not None:
                self.trials.append(tracked_trial(runs, self.started.spec))
            case SweepFinished(sweep=sweep, result=result) if self.started is not None:
                self.metrics = parent_metrics(sweep.spec, result)
                self.champion = champion(sweep, result, self.started)
                self.artifacts = self.started.directory.artifacts


def _content(place: Path) -> _Content:
    content = _Content()
    run(small_sweep(place), callbacks=[content.collect])
    assert content.champion is not None, "the sweep of the check has a winner"
    assert any(trial.failed for trial in content.trials), "the sweep of the check has a failed trial"
    assert any(trial.stopped for trial in content.trials), "the sweep of the check has a stopped trial"
    return content


class _Session:
    """Drives the trackers of one sweep."""

    def __init__(self, tracking: TrackingSpec, storage: Path, content: _Content, shown: Shown | None) -> None:
        self.tracking, self.storage, self.content, self.shown = tracking, storage, content, shown
        self.name = type(tracking).__name__

    def check(self) -> None:
        """All calls, each twice."""
        trials = self.content.trials
        self._drive("an interrupted sweep", self._trials(trials[: len(trials) // 2]), _interrupted)
        self._drive("a resumed sweep", self._trials(trials), _interrupted)
        logged = self._read()
        self._drive("a sweep that is resumed again", self._trials(trials), _interrupted)
        self._assert_same(logged, "trials that were logged by an earlier driver and are logged again")
        self._drive("a sweep that ends", self._trials(trials), self._finish)
        finished = self._read()
        self._drive("a finished sweep that is run again", self._trials(trials), self._finish)
        self._assert_same(finished, "a sweep that is finished and is run again")

    def _drive(self, what: str, *calls: Callable[[Tracker], None]) -> None:
        """Open a tracker in a thread of its own, as a new driver does, and make the calls."""

        def call() -> None:
            tracker = self.tracking.open(self.content.sweep, self.storage)
            for one in calls:
                one(tracker)
                before = self._read()
                one(tracker)
                self._assert_same(before, f"repeated calls in {what}")

        with ThreadPoolExecutor(1) as thread:
            error = thread.submit(call).exception()
        if error is not None and not isinstance(error, AssertionError):
            raise AssertionError(f"{self.name} fails in {what}: {type(error).__name__}: {error}") from error
        if error is not None:
            raise error

    @staticmethod
    def _trials(trials: list[TrackedTrial]) -> Callable[[Tracker], None]:
        def log(tracker: Tracker) -> None:
            for trial in trials:
                tracker.log_trial(trial)

        return log

    def _finish(self, tracker: Tracker) -> None:
        content = self.content
        tracker.finish(content.metrics, content.artifacts, content.champion, "the note of a finished sweep")

    def _read(self) -> Any:
        return None if self.shown is None else self.shown(self.storage)

    def _assert_same(self, before: Any, what: str) -> None:
        now = self._read()
        if now == before:
            return
        lines = difflib.ndiff(pprint.pformat(before).splitlines(), pprint.pformat(now).splitlines())
        changed = [line for line in lines if line[0] in "+-"][:6]
        raise AssertionError("\n".join([f"{self.name}: {what} must change nothing, but", *changed]))


def _interrupted(tracker: Tracker) -> None:
    tracker.interrupted()
