"""Run one sweep from its spec to its result, or the sweeps of a matrix one after another.

Prepare the feature bank, open the ledger, let the backend train packs, select, report, track. A finished pack is
written to the ledger before it is reported to the search or tracking, so an interruption costs at most the packs in
flight.

A sweep that fails does not stop the other sweeps of a matrix. A finished sweep is not trained again, so a run may be
repeated until all sweeps are finished.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lt_train.core.errors import CheckpointError, DataError, LongtailError, StorageError, UserError, first_line
from lt_train.core.imports import require
from lt_train.core.io import atomic_file
from lt_train.core.text import progress
from lt_train.features.bank import FeatureBank
from sweeps.analysis.labels import ranked_by
from sweeps.analysis.result import MatrixTable, Result, matrix_table
from sweeps.analysis.summary import summarise
from sweeps.config.interfaces import Champion, SweepStarted
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import Prepared, open_cached_bank, prepare_all
from sweeps.experiment.signals import sigterm_as_interrupt
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.experiment.watcher import Watcher
from sweeps.reporting.artifacts import champion_note, finished_note, running_note, write_artifacts
from sweeps.reporting.terminal import winner_line
from sweeps.store import directory as directories
from sweeps.store.directory import (
    check_name,
    check_spec,
    interrupted_sweep,
    load_matrix_directory,
    load_spec,
    open_directory,
    recorded_bank,
    save_matrix,
)
from sweeps.store.layout import IDENTITY, SweepDirectory, leases
from sweeps.store.lease import Lease, acquire_lease
from sweeps.store.ledger import Ledger
from sweeps.store.progress import JOB_VARIABLE, Progress, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.events import dataset_infos, image_classifier, runs_view, stage1_series

__all__ = ["MatrixFailed", "TrackingBehind", "archive", "resume", "resume_matrix", "run", "run_matrix"]


logger = logging.getLogger(__name__)


class TrackingBehind(LongtailError):
    """The sweep is finished and its result is written, but not everything is in tracking. `resume` writes the rest."""

    def __init__(self, result: Result, directory: Path, reason: Exception | None) -> None:
        self.result = result
        super().__init__(
            f"the sweep is finished and its result is written, but tracking could not be completed: {reason}; "
            f"`lt-sweep resume {directory}` writes the rest and trains nothing again"
        )


def run(spec: SweepSpec, *, fresh: bool = False) -> Result:
    """Run a sweep, or resume it after an earlier call was interrupted. A finished sweep is not trained again.

    Args:
        spec: the sweep.
        fresh: start over and keep the results of an earlier sweep of this name as `<name>.previous-<N>`.

    Returns:
        The content of `<storage>/<name>/result.json`.

    Raises:
        UserError: the spec, the data or the directory has to be changed first.
        StorageError: a disk is full; free space and run again.
        TrackingBehind: tracking is incomplete because its server could not be reached; the result is in the error.
        LongtailError: packs failed; run again.
    """
    return _run(spec.with_absolute_paths(Path.cwd()), fresh=fresh)


def resume(directory: str | Path) -> Result:
    """Resume the sweep in `directory`; see `run`."""
    return _run(load_spec(Path(directory)), resuming=True)


def _run(spec: SweepSpec, *, fresh: bool = False, resuming: bool = False) -> Result:
    check_name(spec)
    require(*spec.backend.libraries, *spec.tracking.libraries)
    job = os.environ.get(JOB_VARIABLE)
    with (
        sigterm_as_interrupt(),
        acquire_lease(leases(Path(spec.storage)), spec.name, job=job) as lease,
        _published(spec, lease) as publisher,
    ):
        start = time.perf_counter()
        # Errors in the input are raised here, before an earlier sweep is touched.
        if not fresh:
            check_spec(spec)
        prepared = _prepare(spec, resuming, lambda text: publisher.update(note=text))
        prepare_seconds = time.perf_counter() - start
        lease.check()
        if fresh:
            archive(spec, lease)
        directory = open_directory(spec, prepared.bank.fingerprint)
        publisher.directory = directory.path
        with (
            contextlib.closing(Ledger(directory.path, lease.check, lease.who)) as ledger,
            _tracker(spec, directory, prepared.bank, lease, publisher) as tracker,
        ):
            recorded = len(ledger.finished)
            queue, backend_seconds = _train(spec, prepared.bank, ledger, tracker, publisher)
            seconds = {
                "prepare": prepare_seconds,
                "backend": backend_seconds,
                "search": queue.seconds,
                "tracking": tracker.seconds,
                "total": time.perf_counter() - start,
            }
            result = summarise(queue, prepared.bank.notes, seconds)
            champion = _champion(queue, result, prepared)
            lease.check()
            if len(ledger.finished) > recorded or not directory.result.exists():  # else keep the times of the first
                with atomic_file(directory.result) as file:
                    file.write_text(result.model_dump_json(by_alias=True, indent=1) + "\n")
            write_artifacts(directory, spec, prepared.bank, queue, result)
            note = finished_note(spec, result, directory.path)
            tracked = tracker.finish(_parent_metrics(spec, result), directory.artifacts, champion, note)
        if not tracked:
            lease.check()
            raise TrackingBehind(result, directory.path, tracker.last_error) from tracker.last_error
        publisher.update(
            state="finished",
            note="",
            winner=winner_line(result),
            seconds_left=0.0,
            tracking_behind=0,
            tracking_error="",
        )
        return result


@contextlib.contextmanager
def _published(spec: SweepSpec, lease: Lease) -> Iterator[Publisher]:
    """Publish the progress of the sweep in the block, and how it ended if it ended with an error."""
    first = Progress(sweep=spec.name, state="preparing", driver=lease.who, started_ms=time.time_ns() // 1_000_000)
    publisher = Publisher(first, lease.is_valid)
    try:
        yield publisher
    except TrackingBehind as error:
        publisher.update(state="finished", winner=winner_line(error.result), seconds_left=0.0, note=str(error))
        raise
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        publisher.update(state="stopped" if stopped else "failed", note="" if stopped else str(error))
        raise


def _prepare(spec: SweepSpec, resuming: bool, on_progress: Callable[[str], None]) -> Prepared:
    """The feature bank. A resume needs neither data nor checkpoint if the storage still has the bank."""
    try:
        return prepare_all(spec, on_progress)
    except (DataError, CheckpointError) as error:
        fingerprint = recorded_bank(spec) if resuming else None
        cached = None if fingerprint is None else open_cached_bank(spec, fingerprint)
        if cached is None:
            if advice := _missing_upload(spec):
                raise UserError(f"{error}; {advice}") from error
            raise
        logger.warning("%s\ncontinuing with the features that this sweep was started with", error)
        return cached


def _missing_upload(spec: SweepSpec) -> str:
    """What to do about files that a Ray job does not find: they may have been uploaded with an earlier job."""
    missing = [field for field, path in spec.files().items() if not Path(path).exists()]
    if JOB_VARIABLE not in os.environ or not missing:
        return ""
    fields = " and ".join(missing)
    return f"if {fields} was uploaded with an earlier job, upload it again with `lt-sweep submit` of the sweep file"


@contextlib.contextmanager
def _tracker(
    spec: SweepSpec, directory: SweepDirectory, bank: FeatureBank, lease: Lease, publisher: Publisher
) -> Iterator[BackgroundTracker]:
    """The sweep's tracker, which marks the sweep as stopped if the block ends with an error."""
    started = _sweep_started(spec, directory, bank)
    tracker = BackgroundTracker(
        lambda: spec.tracking.open(started, Path(spec.storage)),
        may_write=lease.is_valid,
        flush_timeout=spec.tracking.flush_timeout,
        on_change=lambda behind, error: publisher.update(tracking_behind=behind, tracking_error=error),
    )
    try:
        yield tracker
    except BaseException:
        tracker.interrupted()
        raise


def _train(
    spec: SweepSpec, bank: FeatureBank, ledger: Ledger, tracker: BackgroundTracker, publisher: Publisher
) -> tuple[TrialQueue, float]:
    """Train what the ledger does not hold; returns the finished queue and the seconds spent in the backend."""
    with progress(f"sweep {spec.name}", "run") as report:
        watcher = Watcher(spec, tracker, report, publisher)
        queue = TrialQueue(spec, bank, ledger, watcher.on_trial)
        publisher.update(state="running", note="")
        watcher.attach(queue)
        start = time.perf_counter()
        if not queue.exhausted():
            spec.backend.train(bank, queue, cpus=spec.resources.cpus_per_pack, gpus=spec.resources.gpus_per_pack)
        seconds = time.perf_counter() - start
        watcher.trained()
    return queue, seconds


def archive(spec: SweepSpec, lease: Lease) -> None:
    """Move an earlier sweep of this name to `<name>.previous-<N>`; if tracking shows it as running, mark it as stopped.

    Args:
        spec: the sweep, with absolute paths (`SweepSpec.with_absolute_paths`).
        lease: the sweep's lease.

    Raises:
        UserError: the directory belongs to a matrix.
        StorageError: it cannot be moved.
    """
    interrupted = interrupted_sweep(spec)
    if interrupted is not None:
        old, directory = interrupted
        started = _sweep_started(old, directory, None)
        tracker = BackgroundTracker(lambda: old.tracking.open(started, Path(old.storage)), may_write=lease.is_valid)
        tracker.interrupted()
        if tracker.last_error is not None:
            logger.warning(
                "tracking still shows the archived sweep as running because it could not be reached: %s",
                tracker.error_summary,
            )
    directories.archive(spec)


def _sweep_started(spec: SweepSpec, directory: SweepDirectory, bank: FeatureBank | None) -> SweepStarted:
    """What tracking shows of the sweep; without a bank only what is needed to find its run."""
    params = {
        "dataset": spec.dataset.kind,
        "backbone": spec.backbone.kind if spec.backbone else "none",
        "method": ", ".join(candidate.name for candidate in spec.candidates()),
        "trials": spec.search.trials,
        "selection": spec.selection.model_dump_json(exclude={"extended_training"}),  # which a resume may change
        "phase": "sweep",
    }
    started = SweepStarted(directory.sweep_id, spec.name, params, directory.started_ms)
    if bank is None:
        return started
    return replace(
        started,
        params=params | {"bank": bank.fingerprint},
        series=stage1_series(bank.record),
        note=running_note(spec, directory.path),
        data=dataset_infos(spec, bank),
        view=runs_view(spec, bank.val is not None),
    )


def _champion(queue: TrialQueue, result: Result, prepared: Prepared) -> Champion | None:
    trial, winner = queue.winner(), result.winner
    if trial is None or winner is None:
        return None
    best = next(record for record in queue.finished[trial.name] if record.seed == winner.best_of.seed)
    classifier, bank = trial.method.classifier(queue.ledger.head(best.key)), prepared.bank
    return Champion(
        classifier,
        bank.feature_dim,
        bank.fingerprint,
        with_backbone=lambda: image_classifier(classifier, bank, prepared.images),
        about=champion_note(queue.spec, result),
    )


def _parent_metrics(spec: SweepSpec, result: Result) -> dict[str, float]:
    """The winner's numbers, including the objective, by which sweeps can be ranked."""
    winner = result.winner
    if winner is None:
        return {}
    values: dict[str, Any] = winner.mean.values()
    values |= {f"best_of_{name}": value for name, value in winner.best_of.model_dump().items() if name[:4] == "acc_"}
    values |= {"loma_mean": winner.loma.mean, "loma_cv": winner.loma.cv}
    values |= {ranked_by(spec): result.methods[0].objective, "objective": result.methods[0].objective}
    return {name: round(value, 6) for name, value in values.items() if value is not None}


class MatrixFailed(LongtailError):
    """All sweeps were run and some failed. `table` holds the results of the others, `errors` the reasons by value."""

    def __init__(self, table: MatrixTable, errors: Mapping[str, Exception]) -> None:
        self.table, self.errors = table, dict(errors)
        why = "".join(f"\n  {table.matrix}-{value}: {first_line(error)}" for value, error in errors.items())
        super().__init__(f"{len(errors)} of {len(table.rows)} sweeps of {table.matrix} failed:{why}")
        invalid_input = all(isinstance(error, UserError) for error in errors.values())
        self.exit_code = UserError.exit_code if invalid_input else LongtailError.exit_code


def run_matrix(matrix: SweepMatrix, *, fresh: bool = False) -> MatrixTable:
    """Run the sweeps of a matrix, or resume them after an earlier call was interrupted.

    Args:
        matrix: the sweeps.
        fresh: start all sweeps over and keep earlier results of these names as `<name>.previous-<N>`.

    Returns:
        Their results side by side; `matrix_table` reads them again at any time.

    Raises:
        UserError: the name of the matrix is taken, or another driver runs the matrix or, with `fresh`, one of its
            sweeps.
        MatrixFailed: some sweeps failed; the others are finished.
    """
    return _run_all(matrix.with_absolute_paths(Path.cwd()), run, fresh=fresh)


def resume_matrix(directory: str | Path) -> MatrixTable:
    """Resume the matrix in `directory`; see `run_matrix`."""

    def run_or_resume(spec: SweepSpec) -> Result:
        path = Path(spec.storage) / spec.name
        return resume(path) if (path / IDENTITY).exists() else run(spec)

    return _run_all(load_matrix_directory(Path(directory)), run_or_resume)


def _run_all(matrix: SweepMatrix, run_one: Callable[[SweepSpec], Result], *, fresh: bool = False) -> MatrixTable:
    errors: dict[str, Exception] = {}
    with _lease(matrix, matrix.name):
        save_matrix(matrix, failed={})
        if fresh:
            _archive_all(matrix)
        for number, (value, spec) in enumerate(matrix.members.items(), start=1):
            logger.info("%s: %d of %d sweeps of %s", spec.name, number, len(matrix.members), matrix.name)
            try:
                if run_one(spec).winner is None:
                    errors[value] = LongtailError("every trial, or every finalist, failed; see its result.json")
            except LongtailError as error:
                errors[value] = error
                logger.error("%s: %s", spec.name, error)
            except Exception as error:  # a bug in one sweep must not stop the others
                errors[value] = error
                logger.exception("%s failed", spec.name)
            if value in errors:
                with contextlib.suppress(StorageError):  # a full disk must not stop the others
                    save_matrix(matrix, failed={value: first_line(error) for value, error in errors.items()})
    table = matrix_table(matrix)
    rows = list(table.rows)
    for index, row in enumerate(rows):
        if not row.cells and row.value in errors:
            rows[index] = row.model_copy(update={"missing": f"failed: {first_line(errors[row.value])}"})
        elif not row.cells:  # its result belongs to another version of the sweep file
            errors[row.value] = UserError(f"{row.missing}; restore it, or start over with --fresh")
    if errors:
        raise MatrixFailed(table.model_copy(update={"rows": rows}), errors)
    return table


def _archive_all(matrix: SweepMatrix) -> None:
    """Archive all directories before the first sweep runs: a resume cannot tell an old one from a fresh one."""
    with contextlib.ExitStack() as stack:
        acquired = [(spec, stack.enter_context(_lease(matrix, spec.name))) for spec in matrix.sweeps]
        for spec, lease in acquired:
            archive(spec, lease)


def _lease(matrix: SweepMatrix, name: str) -> contextlib.AbstractContextManager[Lease]:
    return acquire_lease(leases(Path(matrix.storage)), name, job=os.environ.get(JOB_VARIABLE))
