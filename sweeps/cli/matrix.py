"""What the commands do with a file, or a directory, of several sweeps; one sweep is the matter of `here`.

Results go to standard output, progress and trouble to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from lt_train.core.errors import UserError
from sweeps.analysis.matrix_table import MatrixTable, matrix_table, read_result
from sweeps.config.matrix import SweepMatrix
from sweeps.experiment.matrix_runner import MembersFailed
from sweeps.reporting.markdown import method_table
from sweeps.reporting.matrix_table import cross_comparison, matrix_markdown
from sweeps.reporting.terminal import comparison
from sweeps.store.matrix_directory import find_sweeps

__all__ = ["show_matrix", "show_results"]


def show_matrix(run: Callable[[], MatrixTable], *, as_json: bool) -> int:
    """Run a matrix and print its table, also when some of its sweeps failed."""
    failed: MembersFailed | None = None
    try:
        table = run()
    except MembersFailed as error:
        failed, table = error, error.table
    if not as_json:
        for note in dict.fromkeys(note for row in table.rows for note in row.notes):
            print(f"note: {note}", file=sys.stderr)
    _print(table, as_json=as_json, markdown=False)
    if failed is not None:
        raise failed
    return 0


def show_results(target: Path, *, as_json: bool, markdown: bool) -> int:
    """Print the table of a matrix, or of one sweep, from the results on disk.

    Raises:
        UserError: there are no results, or the directory is neither a sweep's nor a matrix's.
    """
    from sweeps.store.directory import load_spec

    found = find_sweeps(target) or load_spec(target)
    if isinstance(found, SweepMatrix):
        table = matrix_table(found)
        if all(row.protocol is None for row in table.rows):
            raise UserError(f"{target}: no sweep of {found.name} has a result yet: {table.rows[0].missing}")
        _print(table, as_json=as_json, markdown=markdown)
        return 0
    result = read_result(found)
    if isinstance(result, str):
        raise UserError(f"{target}: {result}")
    if as_json:
        print(result.model_dump_json(by_alias=True))
    elif markdown:
        print(method_table(result), end="")
    else:
        Console().print(comparison(result))
    return 0


def _print(table: MatrixTable, *, as_json: bool, markdown: bool) -> None:
    if as_json:
        print(json.dumps(table.model_dump(mode="json", by_alias=True)))
    elif markdown:
        print(matrix_markdown(table), end="")
    else:
        Console().print(cross_comparison(table))
