"""The sections of a report: which tables and figures it has, in which order; and those that compare sweeps.

Parts without content are left out; where a reader would expect one, the report says why it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.comparability import differing_rows
from sweeps.analysis.comparison import (
    ClassChange,
    ClassChanges,
    ComparedTrial,
    SweepComparison,
    SweepPair,
    TrialGain,
    compare_sweeps,
)
from sweeps.analysis.labels import short_params, verdict_text
from sweeps.analysis.load import Sweep
from sweeps.analysis.result import MatrixTable
from sweeps.reporting import class_figures, search_figures, tables
from sweeps.reporting.model import Cell, Column, Figure, Line, Panel, Section, Series, SweepReport, Table
from sweeps.reporting.result_tables import matrix_tables
from sweeps.reporting.verdict import extended_table, verdict
from sweeps.search.algorithms import MIN_TRIALS

__all__ = ["comparison_sections", "shared_sections", "sweep_report"]


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


MOST_NAMED = 10
"""Most classes that gained, and that lost, in a table; the data of the figure has all."""

MOST_POINTS = 100
"""Most points of a figure; more classes are grouped by size."""


def comparison_sections(comparison: SweepComparison) -> tuple[Section, ...]:
    """An overview of all sweeps, then one section for each sweep against the reference."""
    sides = [_overview(comparison), _values(comparison), _specs(comparison)]
    first = Section("compared", "Sweeps compared", tables=tuple(table for table in sides if table is not None))
    return (first, *(_pair(pair, number) for number, pair in enumerate(comparison.pairs, start=1)))


def _overview(comparison: SweepComparison) -> Table:
    """Winner and stage-1 head of each sweep. Text columns that are empty for all sweeps are left out."""
    sides = comparison.sweeps
    texts = {
        "sweep": [side.label for side in sides],
        "state": [side.state if any(one.state == "unfinished" for one in sides) else "" for side in sides],
        "stage 1": [side.stage1 or "" for side in sides],
        " or ".join(sorted({side.role for side in sides}, reverse=True)): [
            f"no {side.role}" if side.winner is None else side.winner.label for side in sides
        ],
    }
    kept = {title: cells for title, cells in texts.items() if any(cells)}
    numbers = [(*_means(side.winner), _means(side.baselines.get("vanilla"))[0]) for side in sides]
    titles = (*SPLITS, "vanilla")
    columns = (*map(Column, kept), *(Column(title, "percent") for title in titles))
    rows = tuple((*text, *means) for *text, means in zip(*kept.values(), numbers, strict=True))
    note = (
        "Test accuracy, mean and half width of its 95% interval; vanilla: the stage-1 head, over all classes. Each "
        "sweep selects by its own protocol."
    )
    return Table("overview", "Sweeps", columns, rows, note)


def _means(one: ComparedTrial | None) -> tuple[Cell, ...]:
    return (None,) * len(SPLITS) if one is None else one.mean.by_split()


def _values(comparison: SweepComparison) -> Table | None:
    """Parameters of the winners: the searched ones, and all others that differ."""
    known = {side.label: side.winner for side in comparison.sweeps if side.winner is not None}
    searched = {path for one in known.values() for path in one.searched}
    rows = differing_rows([one.params for one in known.values()], searched)
    note = "Searched values, and all others that differ."
    return _by_path("winners", "Parameters of the winners", list(known), rows, note) if rows else None


def _specs(comparison: SweepComparison) -> Table | None:
    note = "Fields that affect results and differ; bank is the fingerprint of the features."
    labels = [side.label for side in comparison.sweeps]
    title = "Differences of the sweep files"
    return _by_path("specs", title, labels, comparison.specs, note) if comparison.specs else None


def _by_path(name: str, title: str, labels: Sequence[str], rows: dict[str, list[Any]], note: str) -> Table:
    cells = tuple((path, *(_value(path, value) for value in values)) for path, values in rows.items())
    return Table(name, title, (Column("field"), *map(Column, labels)), cells, note)


def _value(path: str, value: Any) -> str | None:
    if isinstance(value, float):
        return short_params({"": value})[1:]
    return None if value is None else str(value)[:12] if path == "bank" else str(value)


def _pair(pair: SweepPair, number: int) -> Section:
    title = f"{pair.label} against {pair.reference}"
    tables = [_gains(pair, number)] if pair.winners or pair.methods else []
    if pair.winners is None:
        return Section(f"compared-{number}", title, tuple(pair.cautions), tuple(tables))
    if pair.classes is None:
        missing = "A feature bank is no longer in the storage, so changes by class are not available."
        return Section(f"compared-{number}", title, (*pair.cautions, missing), tuple(tables))
    named = _named(pair, pair.classes, number)
    return Section(
        f"compared-{number}",
        title,
        (*pair.cautions, _class_text(pair.classes)),
        (*tables, *([] if named is None else [named])),
        (_drawn(pair, pair.classes, number),),
    )


def _gains(pair: SweepPair, number: int) -> Table:
    found = [one for one in (pair.winners, *pair.methods) if one is not None]
    splits = [split for split in SPLITS if any(f"acc_{split}" in one.gain for one in found)]
    what = Column(f"{pair.label} minus {pair.reference}")
    columns = (what, *(Column(split, "gain") for split in splits), Column("p", "p"), Column("verdict"))
    note = (
        f"Percentage points on test with half widths of their 95% intervals. p and verdict: two-sided t test in "
        f"{pair.metric}, paired by seed, or Welch's where no seeds are shared; tied: the interval contains 0; "
        "undecided: one run, or all seeds differ by the same images. Shown are the methods (best trial) and baselines "
        "that both sweeps have."
    )
    rows = tuple(_gain(one, splits, pair.metric) for one in found)
    return Table(f"compared_{number}_gains", "Gains", columns, rows, note, frozenset({0} if pair.winners else ()))


def _gain(one: TrialGain, splits: Sequence[str], metric: str) -> tuple[Cell, ...]:
    gains = [one.gain.get(f"acc_{split}") for split in splits]
    cells = [None if gain is None else gain.difference for gain in gains]
    judged = one.gain.get(metric)
    return (one.what, *cells, None if judged is None else judged.p_value, verdict_text(judged))


def _class_text(classes: ClassChanges) -> str:
    up, down, count = len(classes.changed(1)), len(classes.changed(-1)), len(classes.changes)
    text = f"Of {count} classes {up} gained, {down} lost and {count - up - down} are equal."
    if classes.test == "none":
        return f"{text} If either sweep has only one run, no class can be tested."
    found = [len(classes.changed(sign, significant=True)) for sign in (1, -1)]
    how = f"paired over {classes.pairs} seeds" if classes.test == "paired" else "Welch's, over seeds"
    return (
        f"{text} Significant: {found[0]} gained, {found[1]} lost (t test of each class, {how}; {classes.procedure} at "
        f"a false discovery rate of {classes.false_discovery_rate:.0%}). If no class differed, about "
        f"{classes.expected_by_chance:.2g} of {count} would have p < 0.05. The tests cover the seeds of the "
        "re-training, not the choice of test images."
    )


def _named(pair: SweepPair, classes: ClassChanges, number: int) -> Table | None:
    gained, lost = (sorted(classes.changed(sign), key=lambda one: not one.significant)[:MOST_NAMED] for sign in (1, -1))
    most = sorted([*gained, *lost], key=lambda one: (not one.significant, -one.gain))
    if not most:
        return None
    sizes = [f"images, {pair.reference}", f"images, {pair.label}"] if _resized(classes) else ["training images"]
    columns = (
        Column("class"),
        *(Column(title, "count") for title in sizes),
        *(Column(label, "percent") for label in (pair.reference, pair.label)),
        Column("gain", "points"),
        Column("p", "p"),
        Column("change"),
    )
    rows = tuple(
        (
            str(one.number),
            *(one.reference_images, one.images)[: len(sizes)],
            one.reference_accuracy,
            one.accuracy,
            one.gain,
            one.p_value,
            _judged(one),
        )
        for one in most
    )
    note = (
        f"Up to {MOST_NAMED} classes that gained most and {MOST_NAMED} that lost most, significant ones first. "
        "Accuracy on test, mean over seeds. p refers to the class alone; significance is "
        "corrected for the number of classes."
    )
    return Table(f"compared_{number}_classes", "Classes that changed most", columns, rows, note)


def _resized(classes: ClassChanges) -> bool:
    return any(one.images != one.reference_images for one in classes.changes)


def _judged(one: ClassChange) -> str:
    if one.p_value is None:
        return "not tested"
    return ("gained" if one.gain > 0 else "lost") if one.significant else "not significant"


def _drawn(pair: SweepPair, classes: ClassChanges, number: int) -> Figure:
    """Gain of each class against its size; significant changes are filled."""
    changes = sorted(classes.changes, key=lambda one: -one.reference_images)
    sizes = [max(1, one.reference_images) for one in changes]
    name, title = f"compared_{number}_gain_by_class", f"Gain by class size, {pair.label} against {pair.reference}"
    whose = f" in {pair.reference}" * _resized(classes)
    many = f" {len(changes)} classes in {MOST_POINTS} groups of similar size." * (len(changes) > MOST_POINTS)
    panel = Panel(
        f"training images of the class{whose}",
        "gain, points",
        _grouped(changes) if many else _single(changes),
        lines=(Line("no change", y=0.0, style=5),),
        x_log=bool(sizes) and max(sizes) > 10 * min(sizes),
    )
    caption = f"Winners on test, mean over seeds.{many}"
    alt = f"Scatter plot of the gain in accuracy of each class against its training images. {_class_text(classes)}"
    return Figure(name, title, caption, alt, (panel,), data=_data(name, title, classes))


def _single(changes: Sequence[ClassChange]) -> tuple[Series, ...]:
    parts = {
        "significant": [one for one in changes if one.significant],
        "not significant": [one for one in changes if not one.significant],
    }
    return tuple(
        Series(
            name,
            [float(max(1, one.reference_images)) for one in part],
            [100 * one.gain for one in part],
            "hollow" if style else "points",
            style,
        )
        for style, (name, part) in enumerate(parts.items())
        if part
    )


def _grouped(changes: Sequence[ClassChange]) -> tuple[Series, ...]:
    groups = [[changes[index] for index in indices] for indices in np.array_split(range(len(changes)), MOST_POINTS)]
    x = [float(np.mean([max(1, one.reference_images) for one in group])) for group in groups]
    y = [100 * float(np.mean([one.gain for one in group])) for group in groups]
    return (Series("mean of a group of classes", x, y, "points"),)


def _data(name: str, title: str, classes: ClassChanges) -> Table:
    titles = list(ClassChange.model_fields)
    rows = tuple(tuple(str(v) if isinstance(v, bool) else v for _, v in one) for one in classes.changes)
    return Table(name, title, tuple(map(Column, titles)), rows)
