"""Follows a schedule while packs are trained: hands finished trials to tracking, and keeps progress true.

Everything here only looks on; nothing that is trained or selected depends on it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from lt_train.core.progress import Report
from sweeps.analysis.labels import short_params
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import SearchSize, Trial, search_size
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Record
from sweeps.store.status import Best, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.events import trial_finished

__all__ = ["Watcher"]


class Watcher:
    """What a driver shows of its sweep, on its terminal and where others look."""

    def __init__(self, spec: SweepSpec, tracker: BackgroundTracker, report: Report, publisher: Publisher) -> None:
        self.spec, self.tracker, self.report, self.publisher = spec, tracker, report, publisher
        self.queue: TrialQueue | None = None
        self.asked = search_size(spec)
        self.runs = self.trials = self.stopped = self.failed = 0
        self.best: Best | None = None
        self.early: list[tuple[Trial, list[Record]]] = []
        self.began: float | None = None
        self.before = 0

    @property
    def size(self) -> SearchSize:
        """What is asked for in all, without the longer run where it turned out that there is none to be trained."""
        none = self.queue is not None and self.queue.extended == []
        return replace(self.asked, extended_runs=0) if none else self.asked

    def attach(self, queue: TrialQueue) -> None:
        """Start following; trials that were replayed while the schedule was being made come first."""
        self.queue = queue
        self.report(0, self.size.runs, queue.pack_sizes())
        for trial, records in self.early:
            self._take(trial, records)
        self._tell("" if queue.exhausted() else "workers start and train the first packs")

    def on_trial(self, trial: Trial, records: list[Record]) -> None:
        """Called by the schedule once for every trial that completes."""
        if self.queue is None:
            self.early.append((trial, records))
            return
        self._take(trial, records)
        if self.began is None:  # from the first trial on: before it workers start, once
            self.began, self.before = time.monotonic(), self.runs
        self._tell()

    def trained(self) -> None:
        """Everything is trained; that nothing runs longer is known only after the last trial."""
        if self.size != self.asked:
            self._tell()
        self.publisher.update(at_once=True, note="writing the result, and what tracking does not show yet")

    def _take(self, trial: Trial, records: list[Record]) -> None:
        assert self.queue is not None, "trials are taken once a schedule is followed"
        objective, stopped = self.queue.objective(trial), self.queue.stopped(trial)
        # What ran longer competes with nobody, and so is not ranked where trials are sorted by their objective.
        ranked = None if trial.phase == "extended" else objective
        self.tracker.log_trial(lambda: trial_finished(trial, records, ranked, self.spec))
        self.runs += len(records)
        self.trials += 1
        self.failed += any(record.failure is not None for record in records)
        self.stopped += stopped is not None
        better = objective is not None and (self.best is None or objective > self.best.objective)
        if objective is not None and better and stopped is None and trial.phase == "search":
            chosen = self.spec.selection
            called = f"{trial.called} {short_params(trial.params)}".strip()
            self.best = Best(trial=called, objective=objective, protocol=f"{chosen.on} {chosen.metric}")

    def _tell(self, note: str = "") -> None:
        assert self.queue is not None, "there is something to tell once a schedule is followed"
        notes = []
        if self.best is not None:
            notes.append(f"best {self.best.protocol} {100 * self.best.objective:.2f}% at {self.best.trial}")
        if self.stopped:
            notes.append(f"{self.stopped} trials stopped early")
        if self.failed:
            notes.append(f"{self.failed} trials failed")
        if self.queue.retries.lost:
            notes.append(f"{self.queue.retries.lost} packs lost with their machines, tried again")
        self.report(self.runs, self.size.runs, ", ".join(notes))
        took = 0.0 if self.began is None else time.monotonic() - self.began
        rate = (self.runs - self.before) / took if self.runs > self.before and took > 0 else None
        self.publisher.update(
            note=note,
            trials_finished=self.trials,
            trials_failed=self.failed,
            trials_stopped=self.stopped,
            trials=self.size.all_trials,
            runs_finished=self.runs,
            runs=self.size.runs,
            runs_per_second=rate,
            seconds_left=None if rate is None else max(0, self.size.runs - self.runs) / rate,
            best=self.best,
            packs_lost=self.queue.retries.lost,
            packs_failed=self.queue.retries.failures,
        )
