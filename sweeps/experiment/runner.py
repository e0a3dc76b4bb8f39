"""Run one sweep from its spec to its result, or the sweeps of a matrix one after another.

Prepare the feature bank, open the ledger, let the backend train packs, select, write the result. A finished pack is
written to the ledger before the search or a listener hears of it, so an interruption costs at most the packs in flight.
Everything that is shown meanwhile is shown by listeners to the events of the sweep (`sweeps.experiment.events`).

A sweep that fails does not stop the other sweeps of a matrix. A finished sweep is not trained again, so a run may be
repeated until all sweeps are finished.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from lt_train.core.errors import CheckpointError, DataError, LongtailError, StorageError, UserError, first_line
from lt_train.core.imports import require
from lt_train.core.io import atomic_file
from lt_train.features.bank import FeatureBank
from sweeps.analysis.load import sweep_in_ledger
from sweeps.analysis.matrix_table import MatrixTable, matrix_table
from sweeps.analysis.result import Result
from sweeps.analysis.summary import summarise
from sweeps.config.interfaces import BackendSpec
from sweeps.config.matrix import SweepMatrix, load_document, load_file
from sweeps.config.spec import SweepSpec
from sweeps.experiment.events import Callback, Dispatcher, Preparing, SweepFinished, SweepStarted
from sweeps.experiment.listeners import TrackingBehind, listening, mark_stopped
from sweeps.experiment.prepare import Prepared, open_cached_bank, prepare_all
from sweeps.experiment.signals import sigterm_as_interrupt
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store import directory as directories
from sweeps.store.directory import (
    check_name,
    find_sweep,
    interrupted_sweep,
    load_matrix_directory,
    load_spec,
    open_directory,
    save_matrix,
    with_backend,
)
from sweeps.store.layout import (
    SweepDirectory,
    check_place,
    existing_sweep,
    is_matrix,
    is_sweep,
    leases,
    sweep_directory,
)
from sweeps.store.lease import Lease, acquire_lease
from sweeps.store.ledger import Ledger
from sweeps.store.progress import JOB_VARIABLE

__all__ = ["MatrixFailed", "Sweepable", "TrackingBehind", "archive", "resume", "run", "to_spec"]


logger = logging.getLogger(__name__)

Sweepable = SweepSpec | SweepMatrix | Mapping[str, Any] | str | os.PathLike[str]
"""A sweep or a matrix: its spec, its file, or a mapping in the form of a file."""


@overload
def run(
    spec: SweepSpec | Mapping[str, Any],
    *,
    backend: str | BackendSpec | None = ...,
    fresh: bool = ...,
    callbacks: Sequence[Callback] = ...,
) -> Result: ...
@overload
def run(
    spec: SweepMatrix,
    *,
    backend: str | BackendSpec | None = ...,
    fresh: bool = ...,
    callbacks: Sequence[Callback] = ...,
) -> MatrixTable: ...
@overload
def run(  # Any: type checkers cannot know whether a file holds a matrix
    spec: str | os.PathLike[str],
    *,
    backend: str | BackendSpec | None = ...,
    fresh: bool = ...,
    callbacks: Sequence[Callback] = ...,
) -> Result | Any: ...
def run(
    spec: Sweepable,
    *,
    backend: str | BackendSpec | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result | MatrixTable:
    """Run a sweep or a matrix, or resume it after an earlier call was interrupted. Finished sweeps are not run again.

    Args:
        spec: the sweep or matrix, its file, the name of a bundled file such as `demo`, or a mapping in the form of a
            file.
        backend: replaces the backend of the spec: an instance, or a kind with its defaults, such as `inline`. Results
            do not depend on it.
        fresh: start over and keep the results of earlier sweeps of this name as `<name>.previous-<N>`.
        callbacks: called in order with every event (`sweeps.experiment.events`), in this process and between packs. An
            exception of a callback is logged and does not affect the sweep; KeyboardInterrupt stops it.

    Returns:
        The content of `<storage>/<name>/result.json`; for a matrix the results of its sweeps side by side.

    Raises:
        UserError: the spec, the data or the directory has to be changed first, or the sweep is running already.
        StorageError: a disk is full; free space and run again.
        TrackingBehind: tracking is incomplete because its server could not be reached; the result is in the error.
        MatrixFailed: some sweeps of a matrix failed; the others are finished.
        LongtailError: packs failed; run again.
    """
    found = to_spec(spec)
    if backend is not None:
        found = with_backend(found, backend)
    found = found.with_absolute_paths(Path.cwd())
    if isinstance(found, SweepMatrix):
        return _run_all(found, lambda spec: run(spec, callbacks=callbacks), fresh=fresh)
    check_name(found)
    require(*found.backend.libraries, *found.tracking.libraries)
    with sigterm_as_interrupt(), _lease(found.storage, found.name) as lease:
        return _run(found, lease, callbacks, None, fresh=fresh)


def to_spec(spec: Sweepable) -> SweepSpec | SweepMatrix:
    """The sweep or matrix of a file or mapping; a spec is returned as it is.

    Raises:
        SpecError: the file or mapping is invalid.
    """
    if isinstance(spec, SweepSpec | SweepMatrix):
        return spec
    return load_document(spec) if isinstance(spec, Mapping) else load_file(spec)


def resume(directory: str | os.PathLike[str], *, callbacks: Sequence[Callback] = ()) -> Result | Any:
    """Resume the sweep or the matrix in a directory, as it was started; see `run`."""
    if is_matrix(Path(directory)):
        return _resume_matrix(Path(directory), callbacks)
    path = existing_sweep(Path(directory))
    with sigterm_as_interrupt(), _lease(path.parent, path.name) as lease:
        resumed = sweep_directory(path)
        spec = load_spec(resumed)
        check_name(spec)
        require(*spec.backend.libraries, *spec.tracking.libraries)
        return _run(spec, lease, callbacks, resumed)


def _run(
    spec: SweepSpec, lease: Lease, callbacks: Sequence[Callback], resumed: SweepDirectory | None, *, fresh: bool = False
) -> Result:
    with listening(spec, lease, callbacks) as emit:
        start = time.perf_counter()
        # Errors in the input are raised here, before an earlier sweep is touched.
        earlier = None if fresh else find_sweep(spec, resumed)
        prepared = _prepare(spec, resumed, lambda activity: emit(Preparing(activity)))
        bank, prepare_seconds = prepared.bank, time.perf_counter() - start
        lease.check()
        if fresh:
            archive(spec, lease)
        directory = open_directory(spec, bank.fingerprint, earlier)
        with contextlib.closing(Ledger(directory.path, lease.check, lease.who, directory.identity)) as ledger:
            emit(SweepStarted(spec, directory, bank, prepared.images))
            queue, backend_seconds = _train(spec, bank, ledger, emit)
            seconds = {
                "prepare": prepare_seconds,
                "backend": backend_seconds,
                "search": queue.seconds,
                "listeners": emit.seconds,
                "ledger": ledger.seconds,
                "total": time.perf_counter() - start,
            }
            ledger.finish(seconds, bank.notes)
            sweep = sweep_in_ledger(directory.path, spec, ledger, bank.fingerprint)
            result = summarise(sweep)
            _write_result(directory.result, result, lease)
            emit(SweepFinished(sweep, result))
            lease.check()
        return result


def _prepare(spec: SweepSpec, resumed: SweepDirectory | None, on_progress: Callable[[str], None]) -> Prepared:
    """The feature bank. A resume needs neither data nor checkpoint if the storage still has the bank."""
    try:
        return prepare_all(spec, on_progress)
    except (DataError, CheckpointError) as error:
        cached = None if resumed is None else open_cached_bank(spec, resumed.bank_fingerprint)
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


def _train(spec: SweepSpec, bank: FeatureBank, ledger: Ledger, emit: Dispatcher) -> tuple[TrialQueue, float]:
    """Train what the ledger does not hold; returns the finished queue and the seconds spent in the backend."""
    queue = TrialQueue(spec, bank, ledger, emit)
    start = time.perf_counter()
    if not queue.exhausted():
        logger.info("sweep %s: %s", spec.name, queue.pack_sizes())
        spec.backend.train(bank, queue, cpus=spec.resources.cpus_per_pack, gpus=spec.resources.gpus_per_pack)
    return queue, time.perf_counter() - start


def _write_result(path: Path, result: Result, lease: Lease) -> None:
    """Write `result.json` unless the file already has this content."""
    content = (result.model_dump_json(by_alias=True, indent=1) + "\n").encode()
    lease.check()
    check_place(path)
    with contextlib.suppress(OSError):  # a file that is missing or cannot be read is written again
        if path.read_bytes() == content:
            return
    with atomic_file(path) as file:
        file.write_bytes(content)


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
    error = None if interrupted is None else mark_stopped(*interrupted, lease)
    if error is not None:
        logger.warning(
            "tracking still shows the archived sweep as running because it could not be reached: %s", first_line(error)
        )
    directories.archive(spec)


class MatrixFailed(LongtailError):
    """All sweeps were run and some failed. `table` holds the results of the others, `errors` the reasons by value."""

    def __init__(self, table: MatrixTable, errors: Mapping[str, Exception]) -> None:
        self.table, self.errors = table, dict(errors)
        why = "".join(f"\n  {table.matrix}-{value}: {first_line(error)}" for value, error in errors.items())
        super().__init__(f"{len(errors)} of {len(table.rows)} sweeps of {table.matrix} failed:{why}")
        invalid_input = all(isinstance(error, UserError) for error in errors.values())
        self.exit_code = UserError.exit_code if invalid_input else LongtailError.exit_code


def _resume_matrix(directory: Path, callbacks: Sequence[Callback]) -> MatrixTable:
    def run_or_resume(spec: SweepSpec) -> Result:
        path = Path(spec.storage) / spec.name
        found: Result = resume(path, callbacks=callbacks) if is_sweep(path) else run(spec, callbacks=callbacks)
        return found

    return _run_all(load_matrix_directory(directory), run_or_resume)


def _run_all(matrix: SweepMatrix, run_one: Callable[[SweepSpec], Result], *, fresh: bool = False) -> MatrixTable:
    errors: dict[str, Exception] = {}
    with _lease(matrix.storage, matrix.name):
        save_matrix(matrix, failed={})
        if fresh:
            _archive_all(matrix)
        for number, (value, spec) in enumerate(matrix.members.items(), start=1):
            logger.info("%s: %d of %d sweeps of %s", spec.name, number, len(matrix.members), matrix.name)
            try:
                if run_one(spec).winner is None:
                    errors[value] = LongtailError("every trial, or every finalist, failed; see its result.json")
            except (LongtailError, OSError) as error:
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
        acquired = [(spec, stack.enter_context(_lease(matrix.storage, spec.name))) for spec in matrix.sweeps]
        for spec, lease in acquired:
            archive(spec, lease)


def _lease(storage: str | Path, name: str) -> contextlib.AbstractContextManager[Lease]:
    return acquire_lease(leases(Path(storage)), name, job=os.environ.get(JOB_VARIABLE))
