"""Tables of finished sweeps and matrices, and sections that compare sweeps: for the terminal, Markdown and reports.

Tables are made from `result.json`. A comparison shows settings, gains with tests, and changes by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lt_train.metrics import ACCURACIES, SPLITS, Score
from sweeps.analysis.comparability import differing_rows
from sweeps.analysis.comparison import ClassChange, ClassChanges, ComparedTrial, SweepComparison, SweepPair, TrialGain
from sweeps.analysis.labels import best_text, finalists_text, objective_text, short_params, verdict_text
from sweeps.analysis.matrix_table import MatrixRow, MatrixTable
from sweeps.analysis.result import MethodRow, Protocol, Result, Row
from sweeps.config.plugin_groups import STAGE1_HEAD
from sweeps.reporting.model import Cell, Column, Figure, Line, Panel, Section, Series, Table, score_columns

LOMA = (Column("LoMa", "loma"), Column("cv", "loma"))


def method_table(result: Result) -> Table:
    """One row per method, best first, then the baselines, with gains, parameters and number of trials."""
    protocol, baselines, seeds = result.protocol, list(result.baselines), result.protocol.seeds
    rows = [_method(row, baselines, protocol.metric, row.tied and rank > 0) for rank, row in enumerate(result.methods)]
    for name, row in result.other_baselines().items():
        empty = [""] * len(baselines)
        numbers = (*row.mean.by_score(), row.best_of.acc_all, *empty, row.loma.mean, row.loma.cv)
        rows.append((f"{name} (baseline)", *numbers, "", "", ""))
    columns = (
        Column("method"),
        *score_columns(result.scores),
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
        *row.mean.by_score(),
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
        rows.append((tie, row.method, *row.mean.by_score(), row.best_of.acc_all, row.objective))
    for name, baseline in result.other_baselines().items():
        rows.append(("", f"{name} (baseline)", *baseline.mean.by_score(), baseline.best_of.acc_all, ""))
    last = (Column(f"best/{protocol.seeds}", "percent"), Column(protocol.on, "percent"))
    columns = (Column(""), Column("method"), *score_columns(result.scores), *last)
    return Table("methods", "", columns, tuple(rows[:most]))


def winner_table(result: Result, most: int | None = None) -> Table:
    """At most `most` baselines and the winner: best of S, mean over seeds and LoMa."""
    rows: list[tuple[Cell, ...]] = []
    shown = list(result.baselines.items())[:most]
    if result.winner is not None:
        shown.append((result.winner.params["kind"], result.winner))
    for name, row in shown:
        rows += _best_and_mean(name, row)
    title = f"{result.sweep}: test accuracy in %"
    columns = (Column("method"), Column("statistic"), *score_columns(result.scores), *LOMA)
    return Table("winner", title, columns, tuple(rows))


def _best_and_mean(name: str, row: Row) -> list[tuple[Cell, ...]]:
    best = list(row.best_of.values().values())
    loma = (row.loma.mean, row.loma.cv)
    if len(row.seeds) == 1:
        return [(name, "one run", *best, *loma)]
    return [(name, f"best of {len(row.seeds)}", *best, "", ""), ("", "mean ±95%", *row.mean.by_score(), *loma)]


def matrix_tables(table: MatrixTable) -> tuple[Table, ...]:
    """A matrix: one row per sweep, one column per method; over all classes, over few classes if any, and by metric."""
    found = []
    notes = matrix_notes(table)
    for score in (ACCURACIES[0], ACCURACIES[-1], *table.metrics):
        kind = score_columns([score])[0].kind
        columns = (Column(table.axis), *(Column(method, kind) for method in table.methods))
        rows: list[tuple[Cell, ...]] = []
        best = set()
        for number, row in enumerate(table.rows):
            cells = [row.cells.get(method) for method in table.methods]
            rows.append((row.value, *(None if one is None else one.mean.of_score(score.name) for one in cells)))
            best |= {(number, column) for column, one in enumerate(cells, 1) if one is not None and one.best}
        first = score == ACCURACIES[0]
        if first or any(cell is not None for row in rows for cell in row[1:]):
            more = ["bold: the highest of its row", *notes] if first else []
            classes = f"{score.title} classes" if score in ACCURACIES else score.title
            what = f"accuracy in % over {classes}" if score in ACCURACIES else score.title + " in %" * score.percent
            note = "; ".join([f"Test {what}, mean and half width of its 95% interval", *more]) + "."
            name, title = f"{table.matrix}_{score.title}", f"{table.matrix} by {table.axis}: {classes}"
            strong = frozenset(best if first else ())
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
    numbers = [(*_means(side.winner), _means(side.baselines.get(STAGE1_HEAD))[0]) for side in sides]
    titles = (*SPLITS, STAGE1_HEAD)
    columns = (*map(Column, kept), *(Column(title, "percent") for title in titles))
    rows = tuple((*text, *means) for *text, means in zip(*kept.values(), numbers, strict=True))
    note = (
        f"Test accuracy, mean and half width of its 95% interval; {STAGE1_HEAD}: the stage-1 head, over all classes. "
        "Each sweep selects by its own protocol."
    )
    return Table("overview", "Sweeps", columns, rows, note)


def _means(one: ComparedTrial | None) -> tuple[Cell, ...]:
    return (None,) * len(SPLITS) if one is None else one.mean.by_split()


def _values(comparison: SweepComparison) -> Table | None:
    """Parameters of the winners: the searched ones, and all others that differ."""
    known = {side.label: side.winner for side in comparison.sweeps if side.winner is not None}
    searched = {path for one in known.values() for path in one.searched}
    rows = differing_rows([one.params for one in known.values()], searched)
    note = "Searched hyperparameters, and others that differ."
    return _by_path("winners", "Parameters of the winners", list(known), rows, note) if rows else None


def _specs(comparison: SweepComparison) -> Table | None:
    note = "Fields that affect results and differ; bank is the fingerprint of the features."
    labels = [side.label for side in comparison.sweeps]
    title = "Differences in configuration"
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
    scores = [one for one in (*ACCURACIES, *pair.metrics) if any(one.name in other.gain for other in found)]
    what = Column(f"{pair.label} minus {pair.reference}")
    columns = (what, *score_columns(scores, "gain"), Column("p", "p"), Column("verdict"))
    note = (
        f"Percentage points on test with half widths of their 95% intervals. p and verdict: two-sided t test in "
        f"{pair.metric}, paired by seed, or Welch's where no seeds are shared; tied: the interval contains 0; "
        "undecided: one run, or all seeds differ by the same images. Shown are the methods (best trial) and baselines "
        "that both sweeps have."
    )
    rows = tuple(_gain(one, scores, pair.metric) for one in found)
    return Table(f"compared_{number}_gains", "Gains", columns, rows, note, frozenset({0} if pair.winners else ()))


def _gain(one: TrialGain, scores: Sequence[Score], metric: str) -> tuple[Cell, ...]:
    gains = [one.gain.get(score.name) for score in scores]
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
