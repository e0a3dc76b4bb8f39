"""Run a matrix of sweeps and print its table, or the table of recorded results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from lt_train.cli.program import log_notes
from lt_train.core.errors import UserError
from sweeps.analysis.load import read_directory
from sweeps.analysis.matrix_table import MatrixTable, matrix_table, read_result
from sweeps.analysis.summary import summarise
from sweeps.config.matrix import SweepMatrix
from sweeps.reporting.model import as_markdown
from sweeps.reporting.result_tables import matrix_tables, method_table
from sweeps.reporting.terminal import comparison, matrix_overview
from sweeps.store.directory import load_target


def show_matrix(run: Callable[[], MatrixTable], *, as_json: bool) -> int:
    """Run a matrix and print its table, even if some of its sweeps failed."""
    # Imports torch, which the table of recorded results does not need.
    from sweeps.experiment.runner import MatrixFailed

    failed: MatrixFailed | None = None
    try:
        table = run()
    except MatrixFailed as error:
        failed, table = error, error.table
    if not as_json:
        log_notes(dict.fromkeys(note for row in table.rows for note in row.notes))
    _print(table, as_json=as_json, markdown=False)
    if failed is not None:
        raise failed
    return 0


def show_results(target: Path, *, as_json: bool, markdown: bool) -> int:
    """Print the table of a matrix, or of one sweep, from the recorded results.

    Raises:
        UserError: there are no results, or `target` is not the directory of a sweep or a matrix.
    """
    from sweeps.store.layout import sweep_directory

    found = load_target(target)
    if isinstance(found, SweepMatrix):
        table = matrix_table(found)
        if all(row.protocol is None for row in table.rows):
            raise UserError(f"{target}: no sweep of {found.name} has a result yet: {table.rows[0].missing}")
        _print(table, as_json=as_json, markdown=markdown)
        return 0
    if found is None:
        sweep = read_directory(sweep_directory(target))
        if sweep.state != "finished":
            raise UserError(f"{target} is not finished; `lt-sweep status {target}` shows its progress")
        result = summarise(sweep)
    else:
        read = read_result(found)
        if isinstance(read, str):
            raise UserError(f"{target}: {read}")
        result = read
    if as_json:
        print(result.model_dump_json(by_alias=True))
    elif markdown:
        print(as_markdown(method_table(result), heading="# "), end="")
    else:
        Console().print(comparison(result))
    return 0


def _print(table: MatrixTable, *, as_json: bool, markdown: bool) -> None:
    if as_json:
        print(json.dumps(table.model_dump(mode="json", by_alias=True)))
    elif markdown:
        print("\n".join(as_markdown(one, heading="") for one in matrix_tables(table)), end="")
    else:
        Console().print(matrix_overview(table))
