"""Runs the sweeps of a matrix one after another; a sweep that fails does not stop the others.

Finished members are only summed up again, so that a run may be repeated until all are. Is called by the CLI and by
notebooks.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from lt_train.core.errors import LongtailError, StorageError, UserError, first_line
from lt_train.core.progress import tell
from sweeps.analysis.matrix_table import MatrixTable, matrix_table
from sweeps.analysis.result import Result
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec
from sweeps.experiment import runner as driver
from sweeps.store.layout import IDENTITY, leases
from sweeps.store.lease import Lease, held
from sweeps.store.matrix_directory import load_known_matrix, save_matrix
from sweeps.store.status import JOB_VARIABLE

__all__ = ["MembersFailed", "resume_matrix", "run_matrix"]


class MembersFailed(LongtailError):
    """All members were run, and some failed. `table` has what the others found, `errors` why, by value."""

    def __init__(self, table: MatrixTable, errors: Mapping[str, Exception]) -> None:
        self.table, self.errors = table, dict(errors)
        why = "".join(f"\n  {table.matrix}-{value}: {first_line(error)}" for value, error in errors.items())
        super().__init__(f"{len(errors)} of {len(table.rows)} sweeps of {table.matrix} failed:{why}")
        mendable = all(isinstance(error, UserError) for error in errors.values())
        self.exit_code = UserError.exit_code if mendable else LongtailError.exit_code


def run_matrix(matrix: SweepMatrix, *, fresh: bool = False) -> MatrixTable:
    """Run the sweeps of a matrix, or go on with them where an earlier call stopped.

    Args:
        matrix: what to do.
        fresh: keep what earlier sweeps of these names left as `<name>.previous-<N>` and start all of them over.

    Returns:
        Their results side by side, as `crosstable.matrix_table` reads them again at any time.

    Raises:
        UserError: the matrix's name is taken, or another driver runs it; or, with `fresh`, one of its sweeps.
        MembersFailed: some sweeps failed; the others are finished. Run again.
    """
    return _run(matrix.anchored(Path.cwd()), driver.run, fresh=fresh)


def resume_matrix(directory: str | Path) -> MatrixTable:
    """Go on with the matrix in `directory`; see `run_matrix`."""

    def again(spec: SweepSpec) -> Result:
        place = Path(spec.storage) / spec.name
        return driver.resume(place) if (place / IDENTITY).exists() else driver.run(spec)

    return _run(load_known_matrix(Path(directory)), again)


def _run(matrix: SweepMatrix, run: Callable[[SweepSpec], Result], *, fresh: bool = False) -> MatrixTable:
    errors: dict[str, Exception] = {}
    with _held(matrix, matrix.name):
        save_matrix(matrix, failed={})
        if fresh:
            _set_aside(matrix)
        for number, (value, spec) in enumerate(matrix.members.items(), start=1):
            tell(f"{spec.name}: {number} of {len(matrix.members)} sweeps of {matrix.name}")
            try:
                if run(spec).winner is None:
                    errors[value] = LongtailError("every trial, or every finalist, failed; its result.json says why")
            except LongtailError as error:
                errors[value] = error
                tell(f"{spec.name}: {error}")
            except Exception as error:  # a bug of ours must not cost the night either
                errors[value] = error
                traceback.print_exc()
            if value in errors:
                with contextlib.suppress(StorageError):  # a full disk must not cost the others their turn
                    save_matrix(matrix, failed={value: first_line(error) for value, error in errors.items()})
    table = matrix_table(matrix)
    rows = [
        row.model_copy(update={"missing": f"failed: {first_line(errors[row.value])}"})
        if row.value in errors and not row.cells
        else row
        for row in table.rows
    ]
    for row in rows:  # a resume goes by what a member's directory says, and the file may have changed since
        if not row.cells:
            errors.setdefault(row.value, UserError(f"{row.missing}; put it back, or start over with --fresh"))
    if errors:
        raise MembersFailed(table.model_copy(update={"rows": rows}), errors)
    return table


def _set_aside(matrix: SweepMatrix) -> None:
    """All members' old directories at once, before the first runs: a resume cannot tell an old one from a fresh one."""
    with contextlib.ExitStack() as stack:
        members = [(spec, stack.enter_context(_held(matrix, spec.name))) for spec in matrix.sweeps]
        for spec, lease in members:
            driver.set_aside(spec, lease)


def _held(matrix: SweepMatrix, name: str) -> contextlib.AbstractContextManager[Lease]:
    return held(leases(Path(matrix.storage)), name, job=os.environ.get(JOB_VARIABLE), told=tell)
