"""A tracker behind a thread: tracking may delay a sweep's end, but never fails a sweep or delays training.

One thread makes all calls to the tracker, in order. What cannot be written is retried, at the latest when the sweep
finishes.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lt_train.core.errors import UserError, first_line
from sweeps.config.interfaces import Champion, TrackedTrial, Tracker

__all__ = ["BackgroundTracker"]

RETRY_SECONDS = 10.0
"""Pause after a failed call; doubled with every further failure."""

LONGEST_PAUSE = 60.0


class BackgroundTracker:
    """Makes the calls to a tracker in a thread. Raises nothing; `finish` returns whether everything was written.

    After a failure the tracker is opened again, which looks up what it has already: whether an unanswered request was
    executed is unknown.

    Args:
        connect: opens the tracker.
        may_write: called before every call to the tracker; returns False once this driver has lost its lease, after
            which nothing is written.
        flush_timeout: seconds that `finish` keeps trying.
        on_change: called in another thread with the number of pending trials and the last error, `""` for none,
            whenever they may have changed.

    Attributes:
        last_error: the error of the last call; None if it succeeded.
        seconds: time spent in calls to the tracker.
    """

    def __init__(
        self,
        connect: Callable[[], Tracker],
        *,
        may_write: Callable[[], bool] = lambda: True,
        flush_timeout: float = 0.0,
        on_change: Callable[[int, str], None] = lambda pending, error: None,
    ) -> None:
        self.last_error: Exception | None = None
        self.seconds = 0.0
        self._connect, self._may_write, self._on_change = connect, may_write, on_change
        self._flush_timeout = flush_timeout
        self._tracker: Tracker | None = None
        self._pending: deque[Callable[[], TrackedTrial]] = deque()
        self._stopping = self._finished = False
        self._last_call = 0.0
        self._failures = 0
        self._thread = ThreadPoolExecutor(1, "tracking")
        self._thread.submit(self._call, lambda tracker: None)

    @property
    def pending(self) -> int:
        """Number of trials that are not written yet."""
        return len(self._pending)

    @property
    def error_summary(self) -> str:
        """The last error in one line; empty for none."""
        error = self.last_error  # another thread sets it
        return "" if error is None else first_line(error)[:200]

    def log_trial(self, trial: Callable[[], TrackedTrial]) -> None:
        """Queue a finished trial and return at once. `trial` is called in the thread and may fail like the tracker."""
        self._pending.append(trial)
        self._thread.submit(self._write_pending_if_due)

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> bool:
        """Write pending trials and the result; returns whether that succeeded within `flush_timeout`.

        If not, the sweep is marked as stopped, if the tracker can be reached.
        """

        def write(tracker: Tracker) -> None:
            self._write_pending(tracker)
            if self._may_continue():
                tracker.finish(metrics, artifacts, champion, note)
                self._finished = True

        pause, until = 1.0, time.monotonic() + self._flush_timeout
        while not self._thread.submit(self._call, write).result():
            permanent = isinstance(self.last_error, UserError)
            if permanent or time.monotonic() + pause > until or not self._may_write():
                break
            time.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS)
        if not self._finished and not self._stopping and self.last_error is not None:
            self._thread.submit(self._call, partial(_mark_stopped, self.last_error)).result()
        self._thread.shutdown()
        return self._finished

    def interrupted(self) -> None:
        """Mark the sweep as stopped, after the current call; a resume writes the pending trials.

        If an interrupted `finish` completes, the sweep stays finished.
        """

        def mark(tracker: Tracker) -> None:
            if not self._finished:
                tracker.interrupted()

        self._stopping = True
        with contextlib.suppress(RuntimeError):  # `finish` has shut the thread down
            self._thread.submit(self._call, mark)
        self._thread.shutdown()

    def _may_continue(self) -> bool:
        return not self._stopping and self._may_write()

    def _write_pending_if_due(self) -> None:
        pause = min(RETRY_SECONDS * 2 ** max(self._failures - 1, 0), LONGEST_PAUSE)
        if self.last_error is None or time.monotonic() - self._last_call > pause:
            self._call(self._write_pending)

    def _write_pending(self, tracker: Tracker) -> None:
        failed: Exception | None = None
        for _ in range(self.pending):
            if not self._may_continue():
                return
            try:
                trial = self._pending[0]()
            except Exception as error:  # the trials after it can be written
                failed = error
                self._pending.rotate(-1)
                continue
            tracker.log_trial(trial)
            self._pending.popleft()
            self._on_change(self.pending, "")
        if failed is not None:
            raise failed

    def _call(self, action: Callable[[Tracker], None]) -> bool:
        if not self._may_write():
            return False
        start = time.perf_counter()
        try:
            if self._tracker is None:
                self._tracker = self._connect()
            action(self._tracker)
            self.last_error, self._failures = None, 0
        except Exception as error:  # tracking must not fail the sweep
            self.last_error, self._failures, self._tracker = error, self._failures + 1, None
        self.seconds += time.perf_counter() - start
        self._last_call = time.monotonic()
        self._on_change(self.pending, self.error_summary)
        return self.last_error is None


def _mark_stopped(cause: Exception, tracker: Tracker) -> None:
    """Mark the sweep as stopped, and keep `cause` as the last error."""
    tracker.interrupted()
    raise cause
