"""The listeners of every sweep: artifacts, tracking, progress. Nothing that is trained or selected depends on them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lt_train.core.clock import now_ms
from lt_train.core.errors import LongtailError, first_line
from lt_train.core.text import ProgressCallback, progress
from lt_train.features.bank import FeatureBank
from sweeps.analysis.image_classifier import image_classifier
from sweeps.analysis.labels import ranked_by, short_params
from sweeps.analysis.load import Sweep
from sweeps.analysis.result import Result
from sweeps.analysis.selection import TrialRuns
from sweeps.config.interfaces import Champion, TrackedSweep
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import search_size
from sweeps.experiment.events import (
    Callback,
    Dispatcher,
    Event,
    PackFailed,
    PackStarted,
    PhaseFinished,
    Preparing,
    SweepFinished,
    SweepStarted,
    SweepStopped,
    TrialFinished,
)
from sweeps.reporting.artifacts import champion_note, finished_note, running_note, write_artifacts
from sweeps.reporting.terminal import winner_line
from sweeps.store.layout import SweepDirectory
from sweeps.store.lease import Lease
from sweeps.store.progress import BestTrial, Progress, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.content import dataset_infos, runs_view, stage1_series, tracked_trial
from sweeps.tracking.null import NullTracking

__all__ = [
    "Artifacts",
    "ShowProgress",
    "Tracking",
    "TrackingBehind",
    "champion",
    "listening",
    "mark_stopped",
    "parent_metrics",
    "tracked_sweep",
]


class TrackingBehind(LongtailError):
    """The sweep is finished and its result is written, but not everything is in tracking. `resume` writes the rest."""

    def __init__(self, result: Result, directory: Path, reason: Exception | None) -> None:
        self.result = result
        cause = "it was stopped" if reason is None else first_line(reason)
        super().__init__(
            f"the sweep is finished and its result is written, but tracking could not be completed: {cause}; "
            f"`lt-sweep resume {directory}` writes the rest and trains nothing again"
        )
        self.__cause__ = reason


@contextlib.contextmanager
def listening(spec: SweepSpec, lease: Lease, callbacks: Sequence[Callback]) -> Iterator[Dispatcher]:
    """The listeners of a sweep, for the duration of the block; if it ends with an error, they receive `SweepStopped`.

    Artifacts are written before tracking uploads them, and callbacks come last.

    Raises:
        TrackingBehind: the sweep is finished, but not everything is in tracking.
    """
    first = Progress(sweep=spec.name, state="preparing", driver=lease.who, started_ms=now_ms())
    publisher = Publisher(first, lease.is_valid)
    tracking = None if isinstance(spec.tracking, NullTracking) else Tracking(lease, publisher)
    emit = Dispatcher([Artifacts(), *([tracking] if tracking else []), ShowProgress(spec, publisher), *callbacks])
    try:
        yield emit
    except BaseException as error:
        emit(SweepStopped(error))
        raise
    if tracking is not None and tracking.behind is not None:
        publisher.update(note=str(tracking.behind))
        raise tracking.behind


class Artifacts:
    """Writes `artifacts/` of a finished sweep."""

    def __init__(self) -> None:
        self._started: SweepStarted | None = None

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        if isinstance(event, SweepStarted):
            self._started = event
        elif isinstance(event, SweepFinished) and self._started is not None:
            directory = self._started.directory
            try:
                write_artifacts(directory, event.sweep, self._started.bank, event.result)
            except Exception as error:
                error.add_note(f"`lt-sweep resume {directory.path}` writes the artifacts again")
                raise


class Tracking:
    """Passes a sweep, its trials and its result to the tracker of its spec.

    Attributes:
        behind: set once the sweep is finished, if not everything could be written.
    """

    def __init__(self, lease: Lease, publisher: Publisher) -> None:
        self.behind: TrackingBehind | None = None
        self._lease, self._publisher = lease, publisher
        self._started: SweepStarted | None = None
        self._tracker: BackgroundTracker | None = None

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        match event:
            case SweepStarted(spec=spec, directory=directory, bank=bank):
                self._started = event
                spec.tracking.prepare(Path(spec.storage))
                self._tracker = BackgroundTracker(
                    lambda: spec.tracking.open(tracked_sweep(spec, directory, bank), Path(spec.storage)),
                    may_write=self._lease.is_valid,
                    flush_timeout=spec.tracking.flush_timeout,
                    on_change=lambda pending, error: self._publisher.update(
                        tracking_behind=pending, tracking_error=error
                    ),
                )
            case TrialFinished(runs=runs) if self._started is not None and self._tracker is not None:
                spec = self._started.spec
                self._tracker.log_trial(lambda: tracked_trial(runs, spec))
            case SweepFinished() if self._started is not None and self._tracker is not None:
                self._finish(event, self._started, self._tracker)
            case SweepStopped() if self._tracker is not None:
                self._tracker.interrupted()

    def _finish(self, event: SweepFinished, started: SweepStarted, tracker: BackgroundTracker) -> None:
        sweep, result, directory = event.sweep, event.result, started.directory
        try:
            model = champion(sweep, result, started)
            note = finished_note(sweep.spec, result, directory.path)
            done = tracker.finish(parent_metrics(sweep.spec, result), directory.artifacts, model, note)
            error = tracker.last_error
        except Exception as failure:
            tracker.interrupted()
            done, error = False, failure
        if not done:
            self.behind = TrackingBehind(result, directory.path, error)


def mark_stopped(spec: SweepSpec, directory: SweepDirectory, lease: Lease) -> Exception | None:
    """Mark a sweep whose driver died as stopped in tracking; returns why that failed."""
    started = tracked_sweep(spec, directory, None)
    spec.tracking.prepare(Path(spec.storage))
    tracker = BackgroundTracker(lambda: spec.tracking.open(started, Path(spec.storage)), may_write=lease.is_valid)
    tracker.interrupted()
    return tracker.last_error


def tracked_sweep(spec: SweepSpec, directory: SweepDirectory, bank: FeatureBank | None) -> TrackedSweep:
    """What tracking shows of the sweep; without a bank only what is needed to find its run."""
    params = {
        "dataset": spec.dataset.kind,
        "backbone": spec.backbone.kind if spec.backbone else "none",
        "method": ", ".join(candidate.name for candidate in spec.candidates()),
        "trials": spec.search.trials,
        "selection": spec.selection.model_dump_json(exclude={"extended_training"}),  # which a resume may change
        "phase": "sweep",
    }
    tracked = TrackedSweep(directory.sweep_id, spec.name, params, directory.started_ms)
    if bank is None:
        return tracked
    return replace(
        tracked,
        params=params | {"bank": bank.fingerprint},
        series=stage1_series(bank.record),
        note=running_note(spec, directory.path),
        data=dataset_infos(spec, bank),
        view=runs_view(spec, bank.val is not None),
    )


def champion(sweep: Sweep, result: Result, started: SweepStarted) -> Champion | None:
    """The classifier of the winner's best seed; None without a winner."""
    winner = sweep.winner
    if winner is None:
        return None
    head = sweep.ledger.head(sweep.best_seed(winner).key)
    classifier, bank = winner.trial.method.classifier(head), started.bank
    return Champion(
        classifier,
        bank.feature_dim,
        bank.fingerprint,
        with_backbone=lambda: image_classifier(classifier, bank, started.images),
        about=champion_note(sweep.spec, result),
    )


def parent_metrics(spec: SweepSpec, result: Result) -> dict[str, float]:
    """The winner's numbers, including the objective, by which sweeps can be ranked."""
    winner = result.winner
    if winner is None:
        return {}
    values: dict[str, Any] = winner.mean.values()
    values |= {f"best_of_{name}": value for name, value in winner.best_of.values().items()}
    values |= {"loma_mean": winner.loma.mean, "loma_cv": winner.loma.cv}
    values |= {ranked_by(spec): result.methods[0].objective, "objective": result.methods[0].objective}
    return {name: round(value, 6) for name, value in values.items() if value is not None}


class ShowProgress:
    """Counts finished trials and shows them on the terminal and in `progress.json`, with how the sweep ended."""

    def __init__(self, spec: SweepSpec, publisher: Publisher) -> None:
        self.spec, self.publisher = spec, publisher
        self.runs = self.trials = self.stopped = self.failed = self.packs_lost = self.packs_failed = 0
        self.best: BestTrial | None = None
        self._planned = search_size(spec)
        self._is_extended = False
        self._bar = contextlib.ExitStack()
        self._report: ProgressCallback | None = None
        self._first_trial: float | None = None
        self._runs_before = 0

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        match event:
            case Preparing(activity=activity):
                self.publisher.update(note=activity)
            case SweepStarted():
                self.publisher.directory = event.directory.path
                self._publish(state="running", note="starting workers and training the first packs")
            case PackStarted() if self._report is None:
                self._report = self._bar.enter_context(progress(f"sweep {self.spec.name}", "run"))
                self._show()
            case PackFailed(lost=lost):
                self.packs_lost += lost
                self.packs_failed += not lost
            case TrialFinished(runs=runs, recorded=recorded):
                self._count(runs)
                if not recorded:
                    if self._first_trial is None:  # rates are measured from it on, without the start of the workers
                        self._first_trial, self._runs_before = time.monotonic(), self.runs
                    self._show()
                    self._publish(note="")
            case PhaseFinished(phase="extended"):
                if not self._is_extended and self._planned.extended_runs:  # there was nothing to train
                    self._planned = replace(self._planned, extended_runs=0)
                    self._show()
                self._publish(at_once=True, note="writing the result and the remaining trials to tracking")
                self._bar.close()
            case SweepFinished(result=result):
                self.publisher.update(state="finished", note="", winner=winner_line(result), seconds_left=0.0)
            case SweepStopped(error=error):
                self._bar.close()
                stopped = isinstance(error, KeyboardInterrupt)
                self.publisher.update(state="stopped" if stopped else "failed", note="" if stopped else str(error))

    def _count(self, runs: TrialRuns) -> None:
        self.runs += len(runs.records)
        self.trials += 1
        self.failed += runs.failed
        self.stopped += runs.stopped is not None
        objective, trial = runs.objective, runs.trial
        self._is_extended |= trial.phase == "extended"
        better = objective is not None and (self.best is None or objective > self.best.objective)
        if objective is not None and better and runs.stopped is None and trial.phase == "search":
            selection = self.spec.selection
            name = f"{trial.display_name} {short_params(trial.params)}".strip()
            self.best = BestTrial(trial=name, objective=objective, protocol=f"{selection.on} {selection.metric}")

    def _show(self) -> None:
        if self._report is None:
            return
        notes = []
        if self.best is not None:
            notes.append(f"best {self.best.protocol} {100 * self.best.objective:.2f}% at {self.best.trial}")
        if self.stopped:
            notes.append(f"{self.stopped} trials stopped early")
        if self.failed:
            notes.append(f"{self.failed} trial{'s' * (self.failed != 1)} failed")
        if self.packs_lost:
            notes.append(f"{self.packs_lost} packs lost with their nodes and rescheduled")
        self._report(self.runs, self._planned.runs, ", ".join(notes))

    def _publish(self, **changes: Any) -> None:
        seconds = 0.0 if self._first_trial is None else time.monotonic() - self._first_trial
        rate = (self.runs - self._runs_before) / seconds if self.runs > self._runs_before and seconds > 1.0 else None
        self.publisher.update(
            **changes,
            trials_finished=self.trials,
            trials_failed=self.failed,
            trials_stopped=self.stopped,
            trials=self._planned.all_trials,
            runs_finished=self.runs,
            runs=self._planned.runs,
            runs_per_second=rate,
            seconds_left=None if rate is None else max(0, self._planned.runs - self.runs) / rate,
            best=self.best,
            packs_lost=self.packs_lost,
            packs_failed=self.packs_failed,
        )
