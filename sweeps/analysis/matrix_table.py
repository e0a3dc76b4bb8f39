"""A matrix's results side by side: a row a member, a column a method. Read from the `result.json` of its members.

Whatever is not there yet, or was made of another spec, is a row that says so. Knows results and directories; draws
nothing and trains nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sweeps.analysis.result import Accuracies, ExtendedRun, Intervals, MethodRow, Protocol, Result, Row
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec

__all__ = ["Cell", "MatrixRow", "MatrixTable", "matrix_table", "read_result"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Cell(_Model):
    """One method on one member: the setting that was selected, as its finalists' seeds say."""

    mean: Accuracies = Field(description="on the test set, mean over seeds")
    ci95: Intervals
    seeds: list[int]
    searched: dict[str, Any] = Field(description="the searched values by dotted path; empty where nothing was searched")
    best: bool = Field(description="whether no method of the row has a higher mean of acc_all; intervals say how sure")


class MatrixRow(_Model):
    """One member; without a result it has no cells and says why."""

    value: str = Field(description="the name of what makes this member")
    sweep: str
    protocol: Protocol | None = Field(default=None, description="what was selected on; null without a result")
    extended: ExtendedRun | None = Field(default=None, description="the winner of this member trained longer")
    cells: dict[str, Cell] = Field(description="by method; one that failed is absent")
    missing: str = Field(default="", description="why there is no result; empty where there is one")
    notes: list[str] = Field(default=[], description="what the member's result says of its data and its failures")


class MatrixTable(_Model):
    """What `lt-sweep table --json` prints."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    matrix: str
    axis: str = Field(description="the section or dotted field that differs from row to row")
    methods: list[str] = Field(description="the columns: baselines that are no method's own setting, then the methods")
    rows: list[MatrixRow]


def matrix_table(matrix: SweepMatrix) -> MatrixTable:
    """The results of a matrix as far as they are there."""
    found = {value: read_result(spec) for value, spec in matrix.members.items()}
    results = [result for result in found.values() if isinstance(result, Result)]
    methods = dict.fromkeys(one.name for spec in matrix.sweeps for one in spec.candidates())
    baselines = dict.fromkeys(name for result in results for name in _reported(result) if name not in methods)
    return MatrixTable(
        matrix=matrix.name,
        axis=matrix.axis,
        methods=[*baselines, *methods],
        rows=[_row(value, spec.name, found[value]) for value, spec in matrix.members.items()],
    )


def read_result(spec: SweepSpec) -> Result | str:
    """What a sweep found, or why there is nothing to read."""
    file = Path(spec.storage).expanduser() / spec.name / "result.json"
    try:
        result = Result.model_validate_json(file.read_text())
    except FileNotFoundError:
        return "not finished"
    except (OSError, ValidationError):
        return f"{file} cannot be read"
    if result.spec_fingerprint != spec.fingerprint():
        return f"{file} is of another spec: the sweep file has changed since"
    return result


def _row(value: str, sweep: str, result: Result | str) -> MatrixRow:
    if isinstance(result, str):
        return MatrixRow(value=value, sweep=sweep, cells={}, missing=result)
    rows = _reported(result)
    best = max((row.mean.acc_all for row in rows.values() if row.mean.acc_all is not None), default=None)
    cells = {
        name: Cell(
            mean=row.mean,
            ci95=row.ci95,
            seeds=row.seeds,
            searched=row.searched if isinstance(row, MethodRow) else {},
            best=row.mean.acc_all is not None and row.mean.acc_all == best,
        )
        for name, row in rows.items()
    }
    return MatrixRow(
        value=value, sweep=sweep, protocol=result.protocol, cells=cells, extended=result.extended, notes=result.notes
    )


def _reported(result: Result) -> dict[str, Row]:
    """What is shown of a sweep, by method: the baselines whose setting no method's row has, and the methods."""
    methods = {row.method: row for row in result.methods}
    baselines = {name: row for name, row in result.other_baselines().items() if name not in methods}
    return {**baselines, **methods}
