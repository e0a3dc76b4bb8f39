"""The sections of a report: which tables and figures it has, in which order.

Parts without content are left out; where a reader would expect one, the report says why it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from sweeps.analysis.comparison import compare_sweeps
from sweeps.analysis.load import Sweep
from sweeps.analysis.matrix_table import MatrixTable
from sweeps.reporting import class_figures, search_figures, tables
from sweeps.reporting.model import Figure, Section, SweepReport, Table
from sweeps.reporting.result_tables import comparison_sections, matrix_tables
from sweeps.reporting.verdict import extended_table, verdict
from sweeps.search.algorithms import MIN_TRIALS

Part = TypeVar("Part", Figure, Table)


def sweep_report(sweep: Sweep, others: Sequence[Sweep] = ()) -> SweepReport:
    """The report of one sweep; `others` are all sweeps of the page, for figures that show several."""
    head = verdict(sweep)
    if not sweep.every:
        return SweepReport(sweep.spec.name, head)
    shown = class_figures.classes_shown(sweep)
    heads = class_figures.two_heads(sweep)
    importance = search_figures.importance(sweep)
    sections = [
        Section(
            "methods",
            "Methods",
            tables=_some(tables.methods(sweep), tables.beside_paper(sweep), tables.finalists(sweep)),
        ),
        Section(
            "classes",
            "Classes",
            text=_texts("" if heads else class_figures.missing_heads(sweep)),
            figures=_some(
                class_figures.class_accuracy(sweep, shown),
                class_figures.loma(sweep, shown),
                class_figures.logit_histograms(heads) if heads else None,
                class_figures.one_image(heads) if heads else None,
            ),
        ),
        Section(
            "training",
            "Training",
            tables=_some(extended_table(sweep)),
            figures=_some(search_figures.epochs(sweep)),
        ),
        Section(
            "search",
            "Search",
            text=_texts("" if importance else _importance_missing(sweep)),
            tables=_some(search_figures.near_best(sweep), tables.best_trials(sweep)),
            figures=_some(
                search_figures.history(sweep),
                search_figures.smooth_factor(others or [sweep]),
                search_figures.lr_weight_decay(sweep),
                search_figures.slices(sweep),
                importance,
                search_figures.parallel(sweep),
            ),
        ),
        Section("cost", "Cost", tables=_some(tables.cost(sweep), tables.phases(sweep))),
        Section("failures", "Failures", _no_failure(sweep), _some(tables.failures(sweep))),
    ]
    if sweep.notes:
        sections.append(Section("notes", "Notes", sweep.notes))
    return SweepReport(sweep.spec.name, head, tuple(one for one in sections if one.text or one.tables or one.figures))


def shared_sections(sweeps: Sequence[Sweep], matrices: Sequence[MatrixTable]) -> tuple[Section, ...]:
    """The first sections of a page of several sweeps or of a matrix."""
    found = tuple(table for matrix in matrices for table in matrix_tables(matrix))
    if len(sweeps) < 2:
        return (Section("matrix", "Sweep matrix", tables=found),) if found else ()
    first, *pairs = comparison_sections(compare_sweeps(sweeps))
    return (replace(first, tables=(first.tables[0], *found, *first.tables[1:])), *pairs)


def _importance_missing(sweep: Sweep) -> str:
    if not any(len(one.space) > 1 for one in sweep.spec.candidates()):
        return "Parameter importance needs at least two searched parameters."
    return f"Parameter importance needs at least {MIN_TRIALS} complete trials with different objectives."


def _no_failure(sweep: Sweep) -> tuple[str, ...]:
    return () if any(one.failed for one in sweep.every) else ("No run failed.",)


def _texts(*texts: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _some(*parts: Part | None) -> tuple[Part, ...]:
    return tuple(part for part in parts if part is not None)
