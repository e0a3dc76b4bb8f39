"""The results of the sweeps of a matrix side by side: one row per sweep, one column per method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lt_train.core.errors import LongtailError, first_line
from lt_train.metrics import Score
from sweeps.analysis.load import read_directory
from sweeps.analysis.result import Accuracies, ExtendedRun, MethodRow, Protocol, Result, ResultModel, Row
from sweeps.analysis.summary import summarise
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec
from sweeps.store.layout import SweepDirectory, is_sweep, sweep_directory

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MatrixCell", "MatrixRow", "MatrixTable", "matrix_table", "read_result", "result_in"]


class MatrixCell(ResultModel):
    """The selected trial of one method in one sweep."""

    mean: Accuracies = Field(description="on test, over the seeds of the finalists if there are any")
    seeds: list[int]
    searched: dict[str, Any] = Field(description="searched values by dotted path; empty if nothing was searched")
    best: bool = Field(description="whether no method of the row has a higher mean of acc_all")


class MatrixRow(ResultModel):
    """One sweep of the matrix."""

    value: str = Field(description="name of the value that distinguishes this sweep")
    sweep: str
    protocol: Protocol | None = Field(default=None, description="how trials were ranked; null without a result")
    extended: ExtendedRun | None = Field(default=None, description="extended training of the winner")
    cells: dict[str, MatrixCell] = Field(description="by method; failed methods are absent; empty without a result")
    missing: str = Field(default="", description="why there is no result; empty if there is one")
    notes: list[str] = Field(default=[], description="notes of the result: remarks on the data, failed runs")


class MatrixTable(ResultModel):
    """What `lt-sweep table --json` prints for a matrix."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    matrix: str
    axis: str = Field(description="section or dotted field that differs between the rows")
    methods: list[str] = Field(description="columns: baselines that are not a method of the sweep, then the methods")
    metrics: list[Score] = Field(default=[], description="the further metrics of the sweeps")
    rows: list[MatrixRow]

    def to_frame(self) -> pd.DataFrame:
        """One row per sweep and method.

        Columns: `sweep`, `value` (of the matrix), `method`, `best`, and mean accuracies on test with the ends of their
        95% intervals, as in `Result.to_frame`.
        """
        import pandas as pd

        return pd.DataFrame(
            [
                {"sweep": row.sweep, "value": row.value, "method": method, "best": cell.best} | cell.mean.columns()
                for row in self.rows
                for method, cell in row.cells.items()
            ]
        )


def matrix_table(matrix: SweepMatrix) -> MatrixTable:
    """The results of a matrix that exist; a sweep without a result has a row with the reason."""
    found = {value: read_result(spec) for value, spec in matrix.members.items()}
    results = [result for result in found.values() if isinstance(result, Result)]
    methods = dict.fromkeys(one.name for spec in matrix.sweeps for one in spec.candidates())
    baselines = dict.fromkeys(name for result in results for name in _reported(result) if name not in methods)
    return MatrixTable(
        matrix=matrix.name,
        axis=matrix.axis,
        methods=[*baselines, *methods],
        metrics=list(dict.fromkeys(score for result in results for score in result.metrics)),
        rows=[_row(value, spec.name, found[value]) for value, spec in matrix.members.items()],
    )


def read_result(spec: SweepSpec) -> Result | str:
    """The result of a sweep, or why there is none."""
    path = Path(spec.storage).expanduser() / spec.name
    if not is_sweep(path):
        return "not started"
    try:
        directory = sweep_directory(path)
    except LongtailError as error:
        return first_line(error)
    if directory.spec_fingerprint != spec.fingerprint():
        return f"{path} belongs to an earlier version of the sweep file"
    return result_in(directory)


def result_in(directory: SweepDirectory) -> Result | str:
    """The result of the sweep in a directory, or why there is none."""
    try:
        sweep = read_directory(directory)
        return summarise(sweep) if sweep.state == "finished" else "not finished"
    except LongtailError as error:
        return first_line(error)


def _row(value: str, sweep: str, result: Result | str) -> MatrixRow:
    if isinstance(result, str):
        return MatrixRow(value=value, sweep=sweep, cells={}, missing=result)
    rows = _reported(result)
    best = max((row.mean.acc_all.value for row in rows.values() if row.mean.acc_all is not None), default=None)
    cells = {
        name: MatrixCell(
            mean=row.mean,
            seeds=row.seeds,
            searched=row.searched if isinstance(row, MethodRow) else {},
            best=row.mean.acc_all is not None and row.mean.acc_all.value == best,
        )
        for name, row in rows.items()
    }
    return MatrixRow(
        value=value, sweep=sweep, protocol=result.protocol, cells=cells, extended=result.extended, notes=result.notes
    )


def _reported(result: Result) -> dict[str, Row]:
    """Rows by method: the baselines whose configuration is not that of a method, then the methods."""
    methods = {row.method: row for row in result.methods}
    baselines = {name: row for name, row in result.other_baselines().items() if name not in methods}
    return {**baselines, **methods}
