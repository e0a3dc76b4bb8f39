"""Tracking that delays but never fails a sweep, and that no training waits for.

One thread makes every call to a tracker, in order, while packs are trained; what could not be shown is shown later, at
the latest at the end. Knows trackers; knows no sweep.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweeps.tracking.base import Champion, Tracker, TrialCard

__all__ = ["PatientTracker"]

RETRY_SECONDS = 10.0
"""How long a tracking server that did not answer is left alone; doubled at every further failure."""


class PatientTracker:
    """A tracker behind a thread. Raises nothing; `finish` says whether everything is shown.

    Attributes:
        trouble: what went wrong last, None when all went well since.
        seconds: time spent in calls to the tracker, beside whatever else went on.
    """

    def __init__(self, connect: Callable[[], Tracker]) -> None:
        self.trouble: Exception | None = None
        self.seconds = 0.0
        self._connect = connect
        self._tracker: Tracker | None = None
        self._backlog: deque[TrialCard] = deque()
        self._stopping = False
        self._tried = 0.0
        self._failures = 0
        self._thread = ThreadPoolExecutor(1, "tracking")
        self._thread.submit(self._attempt, lambda tracker: None)

    def log_trial(self, card: TrialCard) -> None:
        """Show a finished trial when there is time; returns at once."""
        self._backlog.append(card)
        self._thread.submit(self._catch_up_if_due)

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None) -> bool:
        """Show what is still to be shown and the result; waits for it, and says whether it succeeded."""

        def everything(tracker: Tracker) -> None:
            self._catch_up(tracker)
            tracker.finish(metrics, artifacts, champion)

        return self._last(everything)

    def interrupted(self) -> None:
        """Mark the sweep as stopped, after the trial being shown; the rest of them a resume will show."""
        self._stopping = True
        self._last(lambda tracker: tracker.interrupted())

    def _last(self, action: Callable[[Tracker], None]) -> bool:
        succeeded = self._thread.submit(self._attempt, action).result()
        self._thread.shutdown()
        return succeeded

    def _catch_up_if_due(self) -> None:
        if self.trouble is None or time.monotonic() - self._tried > RETRY_SECONDS * 2 ** (self._failures - 1):
            self._attempt(self._catch_up)

    def _catch_up(self, tracker: Tracker) -> None:
        while self._backlog and not self._stopping:
            tracker.log_trial(self._backlog[0])
            self._backlog.popleft()

    def _attempt(self, action: Callable[[Tracker], None]) -> bool:
        start = time.perf_counter()
        try:
            if self._tracker is None:
                self._tracker = self._connect()
            action(self._tracker)
            self.trouble, self._failures = None, 0
        except Exception as error:  # whatever a tracking server may answer: the sweep goes on
            self.trouble, self._failures = error, self._failures + 1
        self.seconds += time.perf_counter() - start
        self._tried = time.monotonic()
        return self.trouble is None
