"""Tables of finished sweeps from their `result.json`: for the terminal, Markdown and the report of a matrix."""

from __future__ import annotations

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.labels import best_text, finalists_text, objective_text, short_params
from sweeps.analysis.result import MatrixRow, MatrixTable, MethodRow, Protocol, Result, Row
from sweeps.reporting.model import Cell, Column, Table

__all__ = [
    "matrix_notes",
    "matrix_tables",
    "method_table",
    "ranking_table",
    "selection_text",
    "winner_table",
]

BY_SPLIT = tuple(Column(split, "percent") for split in SPLITS)
LOMA = (Column("LoMa", "loma"), Column("cv", "loma"))


def method_table(result: Result) -> Table:
    """One row per method, best first, then the baselines, with gains, parameters and number of trials."""
    protocol, baselines, seeds = result.protocol, list(result.baselines), result.protocol.seeds
    rows = [_method(row, baselines, protocol.metric, row.tied and rank > 0) for rank, row in enumerate(result.methods)]
    for name, row in result.other_baselines().items():
        empty = [""] * len(baselines)
        numbers = (*row.mean.by_split(), row.best_of.acc_all, *empty, row.loma.mean, row.loma.cv)
        rows.append((f"{name} (baseline)", *numbers, "", "", ""))
    columns = (
        Column("method"),
        *BY_SPLIT,
        Column(f"best of {seeds}", "percent"),
        *(Column(f"gain over {name}", "points") for name in baselines),
        *LOMA,
        Column(protocol.on, "percent"),
        Column("parameters"),
        Column("trials", "count"),
    )
    shown = f"mean and half width of the 95% interval over {seeds} seeds" if seeds > 1 else "one seed"
    rerun = f"; {best_text(protocol.finalists)} of each method ran again on new seeds" if protocol.finalists else ""
    note = (
        f"Test accuracy in %: {shown} of the re-training, for one backbone and one test set. Selected on {protocol.on} "
        f"{protocol.metric}, {protocol.epoch} epoch, {objective_text(protocol.objective, seeds)}{rerun}. `best of "
        f"{seeds}`: all classes, the best seed by the selection metric. `=`: tied with the best method (95% interval "
        "of the difference, paired by seed)."
    )
    return Table("methods", result.sweep, columns, tuple(rows), note)


def _method(row: MethodRow, baselines: list[str], metric: str, tied: bool) -> tuple[Cell, ...]:
    gains = (row.gain.get(name, {}).get(metric) for name in baselines)
    return (
        row.method + " =" * tied,
        *row.mean.by_split(),
        row.best_of.acc_all,
        *("" if gain is None else gain.difference for gain in gains),
        row.loma.mean,
        row.loma.cv,
        row.objective,
        short_params(row.searched),
        row.trials,
    )


def ranking_table(result: Result, most: int | None = None) -> Table:
    """A short form of `method_table` for the terminal, with at most `most` rows."""
    protocol = result.protocol
    rows: list[tuple[Cell, ...]] = []
    for rank, row in enumerate(result.methods):
        tie = "=" if rank and row.tied else ""
        rows.append((tie, row.method, *row.mean.by_split(), row.best_of.acc_all, row.objective))
    for name, baseline in result.other_baselines().items():
        rows.append(("", f"{name} (baseline)", *baseline.mean.by_split(), baseline.best_of.acc_all, ""))
    last = (Column(f"best/{protocol.seeds}", "percent"), Column(protocol.on, "percent"))
    return Table("methods", "", (Column(""), Column("method"), *BY_SPLIT, *last), tuple(rows[:most]))


def winner_table(result: Result, most: int | None = None) -> Table:
    """At most `most` baselines and the winner: best of S, mean over seeds and LoMa."""
    rows: list[tuple[Cell, ...]] = []
    shown = list(result.baselines.items())[:most]
    if result.winner is not None:
        shown.append((result.winner.params["kind"], result.winner))
    for name, row in shown:
        rows += _best_and_mean(name, row)
    title = f"{result.sweep}: test accuracy in %"
    return Table("winner", title, (Column("method"), Column("statistic"), *BY_SPLIT, *LOMA), tuple(rows))


def _best_and_mean(name: str, row: Row) -> list[tuple[Cell, ...]]:
    best = [getattr(row.best_of, f"acc_{split}") for split in SPLITS]
    loma = (row.loma.mean, row.loma.cv)
    if len(row.seeds) == 1:
        return [(name, "one run", *best, *loma)]
    return [(name, f"best of {len(row.seeds)}", *best, "", ""), ("", "mean ±95%", *row.mean.by_split(), *loma)]


def matrix_tables(table: MatrixTable) -> tuple[Table, ...]:
    """A matrix: one row per sweep, one column per method, over all classes and, if there are any, over few classes."""
    found = []
    columns = (Column(table.axis), *(Column(method, "percent") for method in table.methods))
    notes = matrix_notes(table)
    for split in ("all", "few"):
        rows: list[tuple[Cell, ...]] = []
        best = set()
        for number, row in enumerate(table.rows):
            cells = [row.cells.get(method) for method in table.methods]
            rows.append((row.value, *(None if one is None else getattr(one.mean, f"acc_{split}") for one in cells)))
            best |= {(number, column) for column, one in enumerate(cells, 1) if one is not None and one.best}
        if split == "all" or any(cell is not None for row in rows for cell in row[1:]):
            more = ["bold: the highest of its row", *notes] if split == "all" else []
            what = f"Test accuracy in % over {split} classes, mean and half width of its 95% interval"
            note = "; ".join([what, *more]) + "."
            name, title = f"{table.matrix}_{split}", f"{table.matrix} by {table.axis}: {split} classes"
            strong = frozenset(best if split == "all" else ())
            found.append(Table(name, title, columns, tuple(rows), note, strong_cells=strong))
    return tuple(found)


def matrix_notes(table: MatrixTable) -> list[str]:
    """Lines on selection, intervals, extended training and missing results."""
    lines = []
    by_protocol: dict[str, list[MatrixRow]] = {}
    for row in table.rows:
        if row.protocol is not None:
            by_protocol.setdefault(_protocol(row.protocol), []).append(row)
    for text, rows in by_protocol.items():
        which = f"{', '.join(row.value for row in rows)}: " if len(by_protocol) > 1 else ""
        lines.append(which + text)
    if any(row.protocol is not None and row.protocol.seeds > 1 for row in table.rows):
        lines.append("intervals are over seeds of the re-training: one backbone per row, one test set")
    by_times: dict[int, dict[str, list[str]]] = {}
    for row in table.rows:
        if row.extended is not None:
            by_times.setdefault(row.extended.times, {}).setdefault(row.extended.trend, []).append(row.value)
    for times, trends in sorted(by_times.items()):
        text = "; ".join(f"{trend}: {', '.join(values)}" for trend, values in trends.items())
        lines.append(f"winners trained {times}x as long: {text}")
    return lines + [f"{row.sweep}: {row.missing}" for row in table.rows if row.missing]


def selection_text(protocol: Protocol, each: str = "") -> str:
    """`selected on val acc_all, last epoch, mean of 5 seeds, 3 finalists on new seeds`."""
    rerun = f", {finalists_text(protocol.finalists)}{each} on new seeds" if protocol.finalists else ""
    return (
        f"selected on {protocol.on} {protocol.metric}, {protocol.epoch} epoch, "
        f"{objective_text(protocol.objective, protocol.seeds)}{rerun}"
    )


def _protocol(protocol: Protocol) -> str:
    text = selection_text(protocol, " of each method")
    return f"{text}; on the test set, as in the paper: accuracies are optimistic" if protocol.on == "test" else text
