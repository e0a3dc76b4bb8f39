"""Run the sweeps of a matrix one after another; a sweep that fails does not stop the others.

A finished sweep is not trained again, so a run may be repeated until all sweeps are finished.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lt_train.core.errors import LongtailError, StorageError, UserError, first_line
from sweeps.analysis.matrix_table import MatrixTable, matrix_table
from sweeps.analysis.result import Result
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec
from sweeps.experiment import runner
from sweeps.store.directory import load_matrix_directory, save_matrix
from sweeps.store.layout import IDENTITY, leases
from sweeps.store.lease import Lease, acquire_lease
from sweeps.store.status import JOB_VARIABLE

__all__ = ["MatrixFailed", "resume_matrix", "run_matrix"]

logger = logging.getLogger(__name__)


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
    return _run(matrix.with_absolute_paths(Path.cwd()), runner.run, fresh=fresh)


def resume_matrix(directory: str | Path) -> MatrixTable:
    """Resume the matrix in `directory`; see `run_matrix`."""

    def run_or_resume(spec: SweepSpec) -> Result:
        path = Path(spec.storage) / spec.name
        return runner.resume(path) if (path / IDENTITY).exists() else runner.run(spec)

    return _run(load_matrix_directory(Path(directory)), run_or_resume)


def _run(matrix: SweepMatrix, run: Callable[[SweepSpec], Result], *, fresh: bool = False) -> MatrixTable:
    errors: dict[str, Exception] = {}
    with _lease(matrix, matrix.name):
        save_matrix(matrix, failed={})
        if fresh:
            _archive(matrix)
        for number, (value, spec) in enumerate(matrix.members.items(), start=1):
            logger.info("%s: %d of %d sweeps of %s", spec.name, number, len(matrix.members), matrix.name)
            try:
                if run(spec).winner is None:
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


def _archive(matrix: SweepMatrix) -> None:
    """Archive all directories before the first sweep runs: a resume cannot tell an old one from a fresh one."""
    with contextlib.ExitStack() as stack:
        acquired = [(spec, stack.enter_context(_lease(matrix, spec.name))) for spec in matrix.sweeps]
        for spec, lease in acquired:
            runner.archive(spec, lease)


def _lease(matrix: SweepMatrix, name: str) -> contextlib.AbstractContextManager[Lease]:
    return acquire_lease(leases(Path(matrix.storage)), name, job=os.environ.get(JOB_VARIABLE))
