"""The events of a sweep, and the dispatcher that passes them to listeners.

A listener is a function of one argument, the event. Progress, tracking and artifacts are listeners, and so are the
callbacks that a user passes to `sweeps.run`. Listeners are called in the driver's process, between packs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lt_train.core.errors import LongtailError, first_line

if TYPE_CHECKING:
    from lt_train.backbones.checkpoint import ImageSource
    from lt_train.features.bank import FeatureBank
    from lt_train.retrain.base import Pack
    from sweeps.analysis.load import Sweep
    from sweeps.analysis.result import Result
    from sweeps.analysis.selection import TrialRuns
    from sweeps.config.spec import SweepSpec
    from sweeps.config.trials import Phase, Trial
    from sweeps.store.layout import SweepDirectory
    from sweeps.store.records import Record

__all__ = [
    "Callback",
    "Dispatcher",
    "Event",
    "PackFailed",
    "PackStarted",
    "PhaseFinished",
    "Preparing",
    "RunFinished",
    "SweepFinished",
    "SweepStarted",
    "SweepStopped",
    "TrialFinished",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparing:
    """The feature bank is being prepared; `activity` is one line, such as `features on cpu: 300 of 1000 images`."""

    activity: str


@dataclass(frozen=True)
class SweepStarted:
    """The feature bank is ready, and training starts or resumes.

    Attributes:
        spec: the sweep, with absolute paths.
        directory: the sweep's directory.
        bank: the feature bank.
        images: the source of its images; None if the dataset contains features or is missing.
    """

    spec: SweepSpec
    directory: SweepDirectory
    bank: FeatureBank
    images: ImageSource | None


@dataclass(frozen=True)
class PackStarted:
    """A backend takes a pack to train it; a pack that failed is started again, as a whole or in parts."""

    pack: Pack


@dataclass(frozen=True)
class PackFailed:
    """A pack returned no results and is scheduled again.

    Attributes:
        reason: one line.
        lost: whether its node failed; otherwise its own process did.
    """

    pack: Pack
    reason: str
    lost: bool


@dataclass(frozen=True)
class RunFinished:
    """A run was trained and recorded; `trial` was the first to request it."""

    record: Record
    trial: Trial


@dataclass(frozen=True)
class TrialFinished:
    """All runs of a trial are recorded. A resumed sweep repeats the trials that were finished before.

    Attributes:
        runs: the trial with the records of its runs.
        recorded: whether all of them were in the ledger before this process started.
    """

    runs: TrialRuns
    recorded: bool


@dataclass(frozen=True)
class PhaseFinished:
    """All trials of a phase and of those before it are finished.

    Every sweep has one event for each phase, in the order `baseline`, `search`, `finalist`, `extended`, also for phases
    without trials.
    """

    phase: Phase


@dataclass(frozen=True)
class SweepFinished:
    """The sweep is finished and its `result.json` is written."""

    sweep: Sweep
    result: Result


@dataclass(frozen=True)
class SweepStopped:
    """The sweep ends with an error, which is a KeyboardInterrupt if it was interrupted."""

    error: BaseException


Event = (
    Preparing
    | SweepStarted
    | PackStarted
    | PackFailed
    | RunFinished
    | TrialFinished
    | PhaseFinished
    | SweepFinished
    | SweepStopped
)

Callback = Callable[[Event], None]


class Dispatcher:
    """Passes every event to all listeners, in order.

    An exception of a listener is logged and changes nothing else: the other listeners are called, and it is called
    again with the next event. Only the first failure of a listener is a warning. KeyboardInterrupt and SystemExit are
    not caught, so a callback can stop the sweep.

    Attributes:
        seconds: time spent in listeners.
    """

    def __init__(self, listeners: Iterable[Callback]) -> None:
        self.seconds = 0.0
        self._listeners = tuple(listeners)
        self._failed: set[int] = set()

    def __call__(self, event: Event) -> None:
        """Pass an event to all listeners."""
        start = time.perf_counter()
        for place, listener in enumerate(self._listeners):
            try:
                listener(event)
            except Exception as error:
                logger.log(
                    logging.DEBUG if place in self._failed else logging.WARNING,
                    "%s failed at %s: %s; the sweep is not affected",
                    getattr(listener, "__qualname__", type(listener).__qualname__),
                    type(event).__name__,
                    _description(error),
                    exc_info=None if isinstance(error, LongtailError) else error,
                )
                self._failed.add(place)
        self.seconds += time.perf_counter() - start


def _description(error: Exception) -> str:
    """The message of an error and its notes; only its class if they cannot be converted to text."""
    name = type(error).__name__
    try:
        what = str(error) if isinstance(error, LongtailError) else f"{name}: {first_line(error)}"
        return "; ".join([what, *map(str, getattr(error, "__notes__", ()))])
    except Exception:
        return name
