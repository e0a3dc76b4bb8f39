"""Puts a report together from a sweep: which tables and figures, in which order, under which headings.

A part that a sweep has nothing for is left out, and where a reader would look for it the report says why. Knows every
part; draws and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from sweeps.analysis import matrix_table as crosstable
from sweeps.analysis.comparison import compared
from sweeps.analysis.estimate import Estimate
from sweeps.analysis.load import Sweep
from sweeps.reporting import class_figures, logit_figures, search_figures, tables, value_figures
from sweeps.reporting import convergence as transient
from sweeps.reporting.comparison_sections import comparison_sections
from sweeps.reporting.matrix_table import extended_training
from sweeps.reporting.model import Cell, Column, Figure, Report, Section, Table
from sweeps.reporting.verdict import verdict
from sweeps.search.importance import FEWEST_TRIALS

__all__ = ["beside", "compose"]

Part = TypeVar("Part", Figure, Table)


def compose(sweep: Sweep, others: Sequence[Sweep] = ()) -> Report:
    """One sweep's report; `others` are all sweeps of the page, for the figures that show several."""
    head = verdict(sweep)
    if not sweep.every:
        return Report(sweep.spec.name, head)
    shown = class_figures.classes_shown(sweep)
    heads = logit_figures.two_heads(sweep)
    importance = value_figures.importance(sweep)
    sections = [
        Section(
            "methods",
            "Methods",
            tables=_some(tables.methods(sweep), tables.beside_paper(sweep), tables.finalists(sweep)),
        ),
        Section(
            "classes",
            "Classes",
            text=_texts("" if heads else logit_figures.missing_heads(sweep)),
            figures=_some(
                class_figures.class_accuracy(sweep, shown),
                class_figures.loma(sweep, shown),
                logit_figures.logit_histograms(heads) if heads else None,
                logit_figures.one_image(heads) if heads else None,
            ),
        ),
        Section(
            "training",
            "Training",
            tables=_some(transient.extended_table(sweep)),
            figures=_some(search_figures.epochs(sweep)),
        ),
        Section(
            "search",
            "Search",
            text=_texts("" if importance else _importance_missing(sweep)),
            tables=_some(value_figures.near_best(sweep), tables.best_trials(sweep)),
            figures=_some(
                search_figures.history(sweep),
                search_figures.smooth_factor(others or [sweep]),
                search_figures.lr_weight_decay(sweep),
                value_figures.slices(sweep),
                importance,
                value_figures.parallel(sweep),
            ),
        ),
        Section("cost", "Cost", tables=_some(tables.cost(sweep), tables.phases(sweep))),
        Section("failures", "Failures", _no_failure(sweep), _some(tables.failures(sweep))),
    ]
    if sweep.notes:
        sections.append(Section("notes", "Notes on the data", sweep.notes))
    return Report(sweep.spec.name, head, tuple(one for one in sections if one.text or one.tables or one.figures))


def beside(sweeps: Sequence[Sweep], families: Sequence[crosstable.MatrixTable]) -> tuple[Section, ...]:
    """What a page of several sweeps, or of a matrix, starts with."""
    members = tuple(table for matrix in families for table in _members(matrix))
    if len(sweeps) < 2:
        return (Section("members", "Members", tables=members),) if members else ()
    first, *pairs = comparison_sections(compared(sweeps))
    return (replace(first, tables=(first.tables[0], *members, *first.tables[1:])), *pairs)


def _members(matrix: crosstable.MatrixTable) -> tuple[Table, ...]:
    """A matrix: a row a member, a column a method; over all classes, and over the few where there are some."""
    tables = []
    lines = [line[0].upper() + line[1:] for line in extended_training(matrix)]
    lines += [f"{row.sweep}: {row.missing}" for row in matrix.rows if row.missing]
    about = "".join(f" {line}." for line in lines)
    for split in ("all", "few"):
        rows: list[tuple[Cell, ...]] = []
        for row in matrix.rows:
            cells = [row.cells.get(method) for method in matrix.methods]
            rows.append((row.value, *(None if one is None else _cell(one, f"acc_{split}") for one in cells)))
        if split == "all" or any(cell is not None for row in rows for cell in row[1:]):
            columns = (Column(matrix.axis), *(Column(method, "percent") for method in matrix.methods))
            note = f"Test accuracy over {split} classes, mean and half its 95% interval over seeds.{about}"
            name, title = f"{matrix.matrix}_{split}", f"{matrix.matrix} by {matrix.axis}: {split} classes"
            tables.append(Table(name, title, columns, tuple(rows), note))
    return tuple(tables)


def _cell(method: crosstable.Cell, metric: str) -> Estimate | None:
    return Estimate.of(getattr(method.mean, metric), getattr(method.ci95, metric))


def _importance_missing(sweep: Sweep) -> str:
    if not any(len(one.space) > 1 for one in sweep.spec.candidates()):
        return "Fewer than two values were searched, so there is no importance to tell."
    return f"Parameter importance needs {FEWEST_TRIALS} whole trials that differ in their value."


def _no_failure(sweep: Sweep) -> tuple[str, ...]:
    return () if any(one.failed for one in sweep.every) else ("No run failed.",)


def _texts(*texts: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _some(*parts: Part | None) -> tuple[Part, ...]:
    return tuple(part for part in parts if part is not None)
