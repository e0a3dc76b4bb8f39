"""Tracking that delays but never fails a sweep, and that no training waits for.

One thread makes every call to a tracker, in order, while packs are trained; what could not be shown is shown later, at
the latest at the end. Knows trackers; knows no sweep.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lt_train.core.errors import first_line
from sweeps.config.tracking import Champion, Tracker, TrialFinished

__all__ = ["BackgroundTracker"]

RETRY_SECONDS = 10.0
"""How long a tracking server that did not answer is left alone; doubled at every further failure."""

LONGEST_PAUSE = 60.0


class BackgroundTracker:
    """A tracker behind a thread. Raises nothing; `finish` says whether everything is shown.

    After a failure the tracker is opened anew, which looks up what is there: whether a request that was not answered
    was carried out, nobody can say.

    Args:
        connect: opens the tracker.
        may_write: asked before every call; False for a driver that has lost its lease, which shows nothing any more.
        flush_timeout: seconds that `finish` goes on trying.
        told: hears, from another thread, how many trials are not shown yet and why, whenever that may have changed.

    Attributes:
        trouble: what went wrong last, None when all went well since.
        seconds: time spent in calls to the tracker, beside whatever else went on.
    """

    def __init__(
        self,
        connect: Callable[[], Tracker],
        *,
        may_write: Callable[[], bool] = lambda: True,
        flush_timeout: float = 0.0,
        told: Callable[[int, str], None] = lambda behind, trouble: None,
    ) -> None:
        self.trouble: Exception | None = None
        self.seconds = 0.0
        self._connect, self._may_write, self._patience, self._told = connect, may_write, flush_timeout, told
        self._tracker: Tracker | None = None
        self._backlog: deque[Callable[[], TrialFinished]] = deque()
        self._stopping = self._finished = False
        self._tried = 0.0
        self._failures = 0
        self._thread = ThreadPoolExecutor(1, "tracking")
        self._thread.submit(self._attempt, lambda tracker: None)

    @property
    def behind(self) -> int:
        """Trials that are not shown yet."""
        return len(self._backlog)

    @property
    def why_behind(self) -> str:
        """What went wrong last, in a line; empty when all went well since."""
        trouble = self.trouble  # another thread sets it
        return "" if trouble is None else first_line(trouble)[:200]

    def log_trial(self, card: Callable[[], TrialFinished]) -> None:
        """Show a finished trial when there is time; returns at once. Making its card may fail as a call may."""
        self._backlog.append(card)
        self._thread.submit(self._catch_up_if_due)

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> bool:
        """Show what is still to be shown and the result; waits for it, and says whether it succeeded.

        If not, the sweep is marked as stopped, where that can be told.
        """

        def everything(tracker: Tracker) -> None:
            self._catch_up(tracker)
            if self._goes_on():
                tracker.finish(metrics, artifacts, champion, note)
                self._finished = True

        pause, until = 1.0, time.monotonic() + self._patience
        while not self._thread.submit(self._attempt, everything).result():
            if time.monotonic() + pause > until or not self._may_write():
                break
            time.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS)
        if not self._finished and not self._stopping and self.trouble is not None:
            self._thread.submit(self._attempt, partial(_given_up, self.trouble)).result()
        self._thread.shutdown()
        return self._finished

    def interrupted(self) -> None:
        """Mark the sweep as stopped, after the call under way; the rest of the trials a resume will show.

        A `finish` that was interrupted and came to its end all the same stays one.
        """

        def mark(tracker: Tracker) -> None:
            if not self._finished:
                tracker.interrupted()

        self._stopping = True
        with contextlib.suppress(RuntimeError):  # interrupted after the last word of `finish`
            self._thread.submit(self._attempt, mark)
        self._thread.shutdown()

    def _goes_on(self) -> bool:
        return not self._stopping and self._may_write()

    def _catch_up_if_due(self) -> None:
        pause = min(RETRY_SECONDS * 2 ** max(self._failures - 1, 0), LONGEST_PAUSE)
        if self.trouble is None or time.monotonic() - self._tried > pause:
            self._attempt(self._catch_up)

    def _catch_up(self, tracker: Tracker) -> None:
        unmade: Exception | None = None
        for _ in range(self.behind):
            if not self._goes_on():
                return
            try:
                card = self._backlog[0]()
            except Exception as error:  # those behind it need not wait for it
                unmade = error
                self._backlog.rotate(-1)
                continue
            tracker.log_trial(card)
            self._backlog.popleft()
            self._told(self.behind, "")
        if unmade is not None:
            raise unmade

    def _attempt(self, action: Callable[[Tracker], None]) -> bool:
        if not self._may_write():
            return False
        start = time.perf_counter()
        try:
            if self._tracker is None:
                self._tracker = self._connect()
            action(self._tracker)
            self.trouble, self._failures = None, 0
        except Exception as error:  # of a server, or of what is shown: the sweep goes on
            self.trouble, self._failures, self._tracker = error, self._failures + 1, None
        self.seconds += time.perf_counter() - start
        self._tried = time.monotonic()
        self._told(self.behind, self.why_behind)
        return self.trouble is None


def _given_up(trouble: Exception, tracker: Tracker) -> None:
    """Nobody is at work on the sweep any more, and it is not shown as if; what went wrong stays what is told."""
    tracker.interrupted()
    raise trouble
