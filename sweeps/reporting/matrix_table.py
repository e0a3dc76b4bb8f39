"""The table of a matrix, a row a member and a column a method: for a terminal, and in Markdown.

Knows cross tables and rich; computes nothing.
"""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sweeps.analysis.matrix_table import Cell, MatrixRow, MatrixTable
from sweeps.analysis.result import Protocol
from sweeps.analysis.selection import chosen_over, finalists_told
from sweeps.reporting.cells import half_width, percent

__all__ = ["cross_comparison", "extended_training", "matrix_markdown"]

LEADS_TO = {"falls": "on a transient", "level": "level", "gains": "not at its end", "unclear": "cannot be told"}
"""In a word, where a winner leads that trains longer."""


def cross_comparison(table: MatrixTable) -> Group:
    """Accuracy over all classes, then over the few, and what was selected on."""
    parts = [_part(table, "acc_all", "all classes")]
    if any(cell.mean.acc_few is not None for row in table.rows for cell in row.cells.values()):
        parts += [_part(table, "acc_few", "few classes (under 20 training images)")]
    lines = [Text(f"{row.sweep}: {row.missing}") for row in table.rows if row.missing]
    title = f"{table.matrix}: test accuracy in %, mean ±95% over seeds; * the highest of its row"
    return Group(Text(title), *parts, *lines, *_about(table))


def matrix_markdown(table: MatrixTable) -> str:
    """The same for a README or a paper's appendix: all classes and few classes in one cell."""
    rows = [[table.axis, *table.methods], ["---"] * (1 + len(table.methods))]
    rows += [[row.value, *(_both(row, method) for method in table.methods)] for row in table.rows]
    about = [
        "Test accuracy in %, all classes / few classes: mean over seeds and half its 95% interval, bold: the highest "
        "of its row",
        *(str(line) for line in _about(table)),
        *(f"{row.sweep}: {row.missing}" for row in table.rows if row.missing),
    ]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", ". ".join(about)]) + ".\n"


def _part(table: MatrixTable, metric: str, title: str) -> Table:
    shown = Table(title=Text(title), title_justify="left", title_style="", box=None, padding=(0, 1, 0, 0))
    shown.add_column(table.axis, no_wrap=True)
    for method in table.methods:
        shown.add_column(method)
    for row in table.rows:
        cells = [_cell(row.cells.get(method), metric) for method in table.methods]
        best = [method in row.cells and row.cells[method].best and metric == "acc_all" for method in table.methods]
        marked = [Text(cell, style="bold" if mark else "") for cell, mark in zip(cells, best, strict=True)]
        shown.add_row(row.value, *marked)
    return shown


def _cell(cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "-"
    mark = "*" * (cell.best and metric == "acc_all")
    return f"{percent(getattr(cell.mean, metric))}{mark}{half_width(getattr(cell.ci95, metric))}"


def _both(row: MatrixRow, method: str) -> str:
    cell = row.cells.get(method)
    if cell is None:
        return "-"
    every, few = _cell(cell.model_copy(update={"best": False}), "acc_all"), percent(cell.mean.acc_few)
    return f"{f'**{every}**' if cell.best else every} / {few}"


def _about(table: MatrixTable) -> list[Text]:
    """A line for each protocol, with the rows that were selected by it where there are several; and what they mean."""
    lines = []
    by_protocol: dict[str, list[MatrixRow]] = {}
    for row in table.rows:
        if row.protocol is not None:
            by_protocol.setdefault(_selected(row.protocol), []).append(row)
    for selected, rows in by_protocol.items():
        which = f"{', '.join(row.value for row in rows)}: " if len(by_protocol) > 1 else ""
        lines.append(which + selected)
    protocols = [row.protocol for row in table.rows if row.protocol is not None]
    if any(protocol.seeds > 1 for protocol in protocols):
        lines.append("intervals are over seeds of re-training: one backbone a row, one test set")
    return [Text(line) for line in [*lines, *extended_training(table)]]


def extended_training(table: MatrixTable) -> list[str]:
    """Which winners last: a line for each number of times as long."""
    by_times: dict[int, dict[str, list[str]]] = {}
    for row in table.rows:
        if row.extended is not None:
            by_times.setdefault(row.extended.times, {}).setdefault(LEADS_TO[row.extended.ends], []).append(row.value)
    lines = []
    for times, ends in sorted(by_times.items()):
        told = "; ".join(f"{', '.join(rows)} {end}" for end, rows in ends.items())
        lines.append(f"winners trained {times}x as long: {told}")
    return lines


def _selected(protocol: Protocol) -> str:
    fresh = f", {finalists_told(protocol.finalists)} of each method on fresh seeds" if protocol.finalists else ""
    flatters = "; on the test set, as the paper does: these accuracies flatter" if protocol.on == "test" else ""
    return (
        f"selected on {protocol.on} {protocol.metric}, {protocol.epoch} epoch, "
        f"{chosen_over(protocol.objective, protocol.seeds)}{fresh}{flatters}"
    )
