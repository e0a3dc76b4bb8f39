"""Puts a report together from a sweep: which tables and figures, in which order, under which headings.

A part that a sweep has nothing for is left out, and where a reader would look for it the report says why. Knows every
part; draws and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sweeps import crosstable
from sweeps.reporting import class_figures, search_figures, tables, transient, value_figures
from sweeps.reporting.compare import estimate
from sweeps.reporting.content import Cell, Column, Estimate, Figure, Report, Section, Table
from sweeps.reporting.reading import Sweep
from sweeps.reporting.verdict import called, role, verdict
from sweeps.search.importance import FEWEST_TRIALS

__all__ = ["compose", "overview", "side_by_side"]

Part = TypeVar("Part", Figure, Table)


def compose(sweep: Sweep, beside: Sequence[Sweep] = ()) -> Report:
    """One sweep's report; `beside` are all sweeps of the page, for the figures that show several."""
    head = verdict(sweep)
    if not sweep.every:
        return Report(sweep.spec.name, head)
    shown = class_figures.classes_shown(sweep)
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
            text=_texts(class_figures.missing_heads(sweep)),
            figures=_some(
                class_figures.class_accuracy(sweep, shown),
                class_figures.loma(sweep, shown),
                class_figures.logit_histograms(sweep),
                class_figures.one_picture(sweep),
            ),
        ),
        Section(
            "training",
            "Training",
            tables=_some(transient.longer_table(sweep)),
            figures=_some(search_figures.epochs(sweep)),
        ),
        Section(
            "search",
            "Search",
            text=_texts("" if importance else _importance_missing(sweep)),
            tables=_some(value_figures.near_best(sweep), tables.best_trials(sweep)),
            figures=_some(
                search_figures.history(sweep),
                search_figures.smooth_factor(beside or [sweep]),
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


def overview(sweeps: Sequence[Sweep]) -> Table:
    """Several sweeps in one table: who wins each, and by how much over its stage-1 head."""
    rows: list[tuple[Cell, ...]] = []
    for sweep in sweeps:
        winner, vanilla = sweep.winner, sweep.sound_baselines.get("vanilla")
        numbers: list[Cell] = [None] * 4 if winner is None else [estimate(winner.values[:, k]) for k in range(4)]
        start = None if vanilla is None else estimate(vanilla.values[:, sweep.column])
        recipe = "" if sweep.spec.stage1 is None else sweep.spec.stage1.kind
        name = f"no {role(sweep)}" if winner is None else called(sweep, winner)
        rows.append((sweep.spec.name, sweep.state, recipe, name, *numbers, start))
    roles = " or ".join(sorted({role(sweep) for sweep in sweeps}, reverse=True))
    titles = ("sweep", "state", "stage 1", roles)
    splits = (Column(name, "percent") for name in ("all", "many", "medium", "few", "vanilla"))
    note = (
        "Each sweep selects by its own protocol, said with its verdict. Test accuracy, mean and half its 95% interval."
    )
    return Table("overview", "Sweeps side by side", (*map(Column, titles), *splits), tuple(rows), note)


def side_by_side(family: crosstable.CrossTable) -> tuple[Table, ...]:
    """A family: a row a member, a column a method; over all classes, and over the few where there are some."""
    tables = []
    missing = "".join(f" {row.sweep}: {row.missing}." for row in family.rows if row.missing)
    for split in ("all", "few"):
        rows: list[tuple[Cell, ...]] = []
        for row in family.rows:
            cells = [row.cells.get(method) for method in family.methods]
            rows.append((row.value, *(None if one is None else _cell(one, f"acc_{split}") for one in cells)))
        if split == "all" or any(cell is not None for row in rows for cell in row[1:]):
            columns = (Column(family.across), *(Column(method, "percent") for method in family.methods))
            note = f"Test accuracy over {split} classes, mean and half its 95% interval over seeds.{missing}"
            name, title = f"{family.family}_{split}", f"{family.family} by {family.across}: {split} classes"
            tables.append(Table(name, title, columns, tuple(rows), note))
    return tuple(tables)


def _cell(method: crosstable.Cell, metric: str) -> Estimate | None:
    mean, ci95 = getattr(method.mean, metric), getattr(method.ci95, metric)
    return None if mean is None else Estimate(mean, *(ci95 or ()))


def _importance_missing(sweep: Sweep) -> str:
    if not any(len(one.space) > 1 for one in sweep.spec.contestants()):
        return "Fewer than two values were searched, so there is no importance to tell."
    return f"Parameter importance needs {FEWEST_TRIALS} whole trials that differ in their value."


def _no_failure(sweep: Sweep) -> tuple[str, ...]:
    return () if any(one.failed for one in sweep.every) else ("No run failed.",)


def _texts(*texts: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _some(*parts: Part | None) -> tuple[Part, ...]:
    return tuple(part for part in parts if part is not None)
