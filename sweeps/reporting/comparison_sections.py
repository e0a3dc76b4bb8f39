"""A comparison as sections of a page or a terminal: what differs, by how much, on which classes. Pure.

Knows comparisons and what a report holds; reads no sweep and draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.comparison import ClassChange, ClassChanges, Comparison, Pair, Shown, TrialGain
from sweeps.analysis.estimate import Estimate
from sweeps.analysis.labels import short_params, told
from sweeps.analysis.spec_differences import rows_that_differ
from sweeps.reporting.model import Cell, Column, Figure, Line, Panel, Section, Series, Table

__all__ = ["comparison_sections"]

MOST_NAMED = 10
"""Classes that a table names of those that gained, and of those that lost; the figure's data has all."""

MOST_POINTS = 100
"""Of a figure; more classes are taken together in groups of like size."""


def comparison_sections(comparison: Comparison) -> tuple[Section, ...]:
    """The sweeps beside each other, then a section for each that is held against the first."""
    sides = [_overview(comparison), _values(comparison), _specs(comparison)]
    first = Section("compared", "Sweeps compared", tables=tuple(table for table in sides if table is not None))
    return (first, *(_pair(pair, number) for number, pair in enumerate(comparison.pairs, start=1)))


def _overview(comparison: Comparison) -> Table:
    """Who wins each, and where its stage-1 head stands; columns that tell the sweeps apart in nothing are left out."""
    sides = comparison.sweeps
    texts = {
        "sweep": [side.label for side in sides],
        "state": [side.state if any(one.state == "unfinished" for one in sides) else "" for side in sides],
        "stage 1": [side.stage1 or "" for side in sides],
        " or ".join(sorted({side.role for side in sides}, reverse=True)): [
            f"no {side.role}" if side.winner is None else side.winner.called for side in sides
        ],
    }
    kept = {title: cells for title, cells in texts.items() if any(cells)}
    numbers = [(*_means(side.winner), _means(side.baselines.get("vanilla"))[0]) for side in sides]
    titles = (*SPLITS, "vanilla")
    columns = (*map(Column, kept), *(Column(title, "percent") for title in titles))
    rows = tuple((*text, *means) for *text, means in zip(*kept.values(), numbers, strict=True))
    note = (
        "Each selects by its own protocol. Test accuracy, mean and half its 95% interval; vanilla: the stage-1 head, "
        "over all classes."
    )
    return Table("overview", "Sweeps side by side", columns, rows, note)


def _means(one: Shown | None) -> list[Cell]:
    found: list[Cell] = []
    for split in SPLITS:
        mean, ends = (None, None) if one is None else (getattr(part, f"acc_{split}") for part in (one.mean, one.ci95))
        found.append(Estimate.of(mean, ends))
    return found


def _values(comparison: Comparison) -> Table | None:
    """The winners' settings: what was searched, and whatever else is not the same."""
    known = {side.label: side.winner for side in comparison.sweeps if side.winner is not None}
    searched = {path for one in known.values() for path in one.searched}
    rows = rows_that_differ([one.params for one in known.values()], searched)
    note = "Searched values, and whatever else is not the same."
    return _by_path("winners", "Settings of the winners", list(known), rows, note) if rows else None


def _specs(comparison: Comparison) -> Table | None:
    note = "Of all that decides results, what is not the same; bank is the fingerprint of the features."
    labels = [side.label for side in comparison.sweeps]
    title = "In what the sweep files differ"
    return _by_path("specs", title, labels, comparison.specs, note) if comparison.specs else None


def _by_path(name: str, title: str, labels: Sequence[str], rows: dict[str, list[Any]], note: str) -> Table:
    cells = tuple((path, *(_told(path, value) for value in values)) for path, values in rows.items())
    return Table(name, title, (Column("value"), *map(Column, labels)), cells, note)


def _told(path: str, value: Any) -> str | None:
    if isinstance(value, float):
        return short_params({"": value})[1:]
    return None if value is None else str(value)[:12] if path == "bank" else str(value)


def _pair(pair: Pair, number: int) -> Section:
    title = f"{pair.label} against {pair.reference}"
    tables = [_gains(pair, number)] if pair.winners or pair.methods else []
    if pair.winners is None:
        return Section(f"compared-{number}", title, tuple(pair.cautions), tuple(tables))
    if pair.classes is None:
        gone = "A feature bank is gone from the storage, so which classes gained and lost cannot be told."
        return Section(f"compared-{number}", title, (*pair.cautions, gone), tuple(tables))
    named = _named(pair, pair.classes, number)
    return Section(
        f"compared-{number}",
        title,
        (*pair.cautions, _luck(pair.classes)),
        (*tables, *([] if named is None else [named])),
        (_drawn(pair, pair.classes, number),),
    )


def _gains(pair: Pair, number: int) -> Table:
    found = [one for one in (pair.winners, *pair.methods) if one is not None]
    splits = [split for split in SPLITS if any(f"acc_{split}" in one.gain for one in found)]
    what = Column(f"{pair.label} minus {pair.reference}")
    columns = (what, *(Column(split, "gain") for split in splits), Column("p", "p"), Column("is"))
    note = (
        f"Points on test, with half their 95% intervals. p and the last column: two-sided t test in {pair.metric}, "
        "paired by seed, or Welch's where seeds are not shared; tied: the interval holds 0; no spread: all seeds "
        "differ by the same images, and no test can say more than the mean. Methods, each at its best, and baselines "
        "are those that both have."
    )
    rows = tuple(_gain(one, splits, pair.metric) for one in found)
    return Table(f"compared_{number}_gains", "Gains", columns, rows, note, frozenset({0} if pair.winners else ()))


def _gain(one: TrialGain, splits: Sequence[str], metric: str) -> tuple[Cell, ...]:
    gains = [one.gain.get(f"acc_{split}") for split in splits]
    cells = [None if gain is None else Estimate.of(gain.mean, gain.ci95) for gain in gains]
    judged = one.gain.get(metric)
    return (one.what, *cells, None if judged is None else judged.p_value, told(one.verdict, one.test))


def _luck(classes: ClassChanges) -> str:
    up, down, count = len(classes.changed(1)), len(classes.changed(-1)), len(classes.changes)
    told = f"Of {count} classes {up} gained, {down} lost and {count - up - down} are level."
    if classes.test == "none":
        return f"{told} One run on a side cannot tell how many of them by luck."
    sure = [len(classes.changed(sign, sure=True)) for sign in (1, -1)]
    how = f"paired over {classes.pairs} seeds" if classes.test == "paired" else "Welch's over seeds"
    return (
        f"{told} Beyond luck: {sure[0]} gained, {sure[1]} lost (t tests by class, {how}, taken together by "
        f"{classes.procedure}: of those beyond luck at most {classes.false_discovery_rate:.0%} are luck, on average). "
        f"Of {count} equal classes about {classes.by_luck:.2g} would have p < 0.05. The luck is that of the seeds of "
        "re-training; which images were tested is in no interval."
    )


def _named(pair: Pair, classes: ClassChanges, number: int) -> Table | None:
    gained, lost = (sorted(classes.changed(sign), key=lambda one: not one.sure)[:MOST_NAMED] for sign in (1, -1))
    most = sorted([*gained, *lost], key=lambda one: (not one.sure, -one.gain))
    if not most:
        return None
    sizes = [f"images, {pair.reference}", f"images, {pair.label}"] if _resized(classes) else ["training images"]
    columns = (
        Column("class"),
        *(Column(title, "count") for title in sizes),
        *(Column(label, "percent") for label in (pair.reference, pair.label)),
        Column("gain", "points"),
        Column("p", "p"),
        Column("is"),
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
        f"At most {MOST_NAMED} that gained most and {MOST_NAMED} that lost most, those beyond luck first; accuracy "
        "on test, mean over seeds. p is of the class alone, the last column of all classes together."
    )
    return Table(f"compared_{number}_classes", "Classes that changed most", columns, rows, note)


def _resized(classes: ClassChanges) -> bool:
    return any(one.images != one.reference_images for one in classes.changes)


def _judged(one: ClassChange) -> str:
    if one.p_value is None:
        return "not tested"
    return ("gained" if one.gain > 0 else "lost") if one.sure else "maybe luck"


def _drawn(pair: Pair, classes: ClassChanges, number: int) -> Figure:
    """Gain by class size; what is more than luck stands out."""
    changes = sorted(classes.changes, key=lambda one: -one.reference_images)
    sizes = [max(1, one.reference_images) for one in changes]
    name, title = f"compared_{number}_gain_by_class", f"Gain by class size, {pair.label} against {pair.reference}"
    whose = f" in {pair.reference}" * _resized(classes)
    many = f" {len(changes)} classes in {MOST_POINTS} groups of like size." * (len(changes) > MOST_POINTS)
    panel = Panel(
        f"training images of the class{whose}",
        "gain, points",
        _grouped(changes) if many else _single(changes),
        lines=(Line("no change", y=0.0, style=5),),
        x_log=bool(sizes) and max(sizes) > 10 * min(sizes),
    )
    caption = f"Of the winners on test, mean over seeds.{many}"
    alt = f"Gain in accuracy by class against its number of training images. {_luck(classes)}"
    return Figure(name, title, caption, alt, (panel,), data=_every(name, title, classes))


def _single(changes: Sequence[ClassChange]) -> tuple[Series, ...]:
    parts = {
        "beyond luck": [one for one in changes if one.sure],
        "maybe luck": [one for one in changes if not one.sure],
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
    groups = [[changes[place] for place in places] for places in np.array_split(range(len(changes)), MOST_POINTS)]
    x = [float(np.mean([max(1, one.reference_images) for one in group])) for group in groups]
    y = [100 * float(np.mean([one.gain for one in group])) for group in groups]
    return (Series("mean of a group of classes", x, y, "points"),)


def _every(name: str, title: str, classes: ClassChanges) -> Table:
    titles = list(ClassChange.model_fields)
    rows = tuple(tuple(str(v) if isinstance(v, bool) else v for _, v in one) for one in classes.changes)
    return Table(name, title, tuple(map(Column, titles)), rows)
