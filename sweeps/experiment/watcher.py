"""Reports a sweep while its packs are trained: progress on the terminal and in `progress.json`, trials to tracking.

Nothing that is trained or selected depends on it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from lt_train.core.text import ProgressCallback
from sweeps.analysis.labels import short_params
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import SearchSize, Trial, search_size
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Record
from sweeps.store.progress import BestTrial, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.events import trial_finished

__all__ = ["Watcher"]


class Watcher:
    """Counts finished trials and reports them."""

    def __init__(
        self, spec: SweepSpec, tracker: BackgroundTracker, report: ProgressCallback, publisher: Publisher
    ) -> None:
        self.spec, self.tracker, self.report, self.publisher = spec, tracker, report, publisher
        self.queue: TrialQueue | None = None
        self.runs = self.trials = self.stopped = self.failed = 0
        self.best: BestTrial | None = None
        self._planned = search_size(spec)
        self._replayed: list[tuple[Trial, list[Record]]] = []
        self._started: float | None = None
        self._runs_before = 0

    @property
    def size(self) -> SearchSize:
        """The number of trials and runs in all, without extended training once it turns out that there is none."""
        none = self.queue is not None and self.queue.extended == []
        return replace(self._planned, extended_runs=0) if none else self._planned

    def attach(self, queue: TrialQueue) -> None:
        """Start reporting, first the trials that were replayed from the ledger while the queue was created."""
        self.queue = queue
        self.report(0, self.size.runs, queue.pack_sizes())
        for trial, records in self._replayed:
            self._count(trial, records)
        self._publish("" if queue.exhausted() else "starting workers and training the first packs")

    def on_trial(self, trial: Trial, records: list[Record]) -> None:
        """Called by the queue once for every trial that completes."""
        if self.queue is None:
            self._replayed.append((trial, records))
            return
        self._count(trial, records)
        if self._started is None:  # rates are measured from the first trial on, without the start of the workers
            self._started, self._runs_before = time.monotonic(), self.runs
        self._publish()

    def trained(self) -> None:
        """Called once everything is trained."""
        if self.size != self._planned:
            self._publish()
        self.publisher.update(at_once=True, note="writing the result and the remaining trials to tracking")

    def _count(self, trial: Trial, records: list[Record]) -> None:
        assert self.queue is not None, "trials are counted once a queue is attached"
        objective, stopped = self.queue.objective(trial), self.queue.stopped(trial)
        # Extended training does not compete, so it has no objective where trials are sorted by it.
        ranked = None if trial.phase == "extended" else objective
        self.tracker.log_trial(lambda: trial_finished(trial, records, ranked, self.spec))
        self.runs += len(records)
        self.trials += 1
        self.failed += any(record.failure is not None for record in records)
        self.stopped += stopped is not None
        better = objective is not None and (self.best is None or objective > self.best.objective)
        if objective is not None and better and stopped is None and trial.phase == "search":
            selection = self.spec.selection
            name = f"{trial.display_name} {short_params(trial.params)}".strip()
            self.best = BestTrial(trial=name, objective=objective, protocol=f"{selection.on} {selection.metric}")

    def _publish(self, note: str = "") -> None:
        assert self.queue is not None, "progress is published once a queue is attached"
        notes = []
        if self.best is not None:
            notes.append(f"best {self.best.protocol} {100 * self.best.objective:.2f}% at {self.best.trial}")
        if self.stopped:
            notes.append(f"{self.stopped} trials stopped early")
        if self.failed:
            notes.append(f"{self.failed} trials failed")
        if self.queue.retries.lost:
            notes.append(f"{self.queue.retries.lost} packs lost with their nodes and rescheduled")
        self.report(self.runs, self.size.runs, ", ".join(notes))
        seconds = 0.0 if self._started is None else time.monotonic() - self._started
        rate = (self.runs - self._runs_before) / seconds if self.runs > self._runs_before and seconds > 0 else None
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
