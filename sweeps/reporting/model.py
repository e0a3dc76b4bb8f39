"""What a report holds before anything is drawn: tables with typed cells, figures as the series they show.

Plain data. A figure's CSV is made from the very series that are drawn, so the two cannot differ. Knows no sweep, no
file format and no drawing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sweeps.analysis.estimate import Estimate

__all__ = [
    "Cell",
    "Column",
    "Figure",
    "Line",
    "Panel",
    "Report",
    "Section",
    "Series",
    "Table",
    "Verdict",
]

Kind = Literal["text", "percent", "points", "gain", "number", "count", "p"]
"""How a column is shown: percent, points and gain are fractions times 100, the last two with a sign, points with the
ends of an interval and gain with half of it; number has 3 digits."""


Cell = str | int | float | Estimate | None
"""None is what is not known, shown as a dash."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """A table. `name` is its file's; `note` stands below it; `strong` are rows to be shown bold."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Series:
    """One set of points of a panel; None is a gap. `low` and `high` are error bars of points, or a band of a line.

    `value` shades points or cells, and sizes points, from the least to the largest. `label` names single points. The
    look is `style`: series of one style, in all panels and figures, are the same thing.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: Literal["line", "points", "hollow", "steps", "bars", "cells", "cross", "star"] = "line"
    style: int = 0
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    value: Sequence[float] | None = None
    label: Sequence[str] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Line:
    """A reference line across a panel: at `x` or at `y`."""

    name: str
    x: float | None = None
    y: float | None = None
    style: int = 0


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    title: str = ""
    lines: tuple[Line, ...] = ()
    x_log: bool = False
    y_log: bool = False
    x_ticks: Mapping[float, str] | None = None
    y_ticks: Mapping[float, str] | None = None
    value_label: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels side by side, `matrix` in a row. `alt` says in words what is to be seen; `data` replaces the own CSV."""

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    axis: int = 2
    data: Table | None = None

    def table(self) -> Table:
        """What the figure was drawn from: one row a point."""
        if self.data is not None:
            return self.data
        titles = ("panel", "series", self.panels[0].x_label or "x", self.panels[0].y_label or "y")
        columns = [*map(Column, titles), *map(Column, ("low", "high", "value", "label"))]
        return Table(self.name, self.title, tuple(columns), tuple(self._points()))

    def _points(self) -> Iterator[tuple[Cell, ...]]:
        for panel in self.panels:
            for one in panel.series:
                beside = [one.low, one.high, one.value, one.label]
                for place, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
                    extra = [None if values is None else values[place] for values in beside]
                    yield (panel.title, one.name, (panel.x_ticks or {}).get(x, x), y, *extra)
            for line in panel.lines:
                yield (panel.title, line.name, line.x, line.y, None, None, None, None)


@dataclass(frozen=True)
class Verdict:
    """The first screen: what came out, in a sentence, numbers, and what they are worth.

    Attributes:
        headline: who leads, with how much.
        about: what was searched, on what.
        selected: what the numbers were selected on.
        numbers: the winner by split.
        gains: over whom, by how much, by a paired test.
        cautions: what a reader should hold against it, or may rely on.
    """

    headline: str
    about: str
    selected: str
    params: str
    numbers: Table | None
    gains: Table | None
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part of the report under one heading."""

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Report:
    """One sweep's part of a page."""

    name: str
    verdict: Verdict
    sections: tuple[Section, ...] = field(default=())

    def tables(self) -> Iterator[Table]:
        """Every table, those of the verdict first."""
        yield from (table for table in (self.verdict.numbers, self.verdict.gains) if table is not None)
        for section in self.sections:
            yield from section.tables

    def figures(self) -> Iterator[Figure]:
        """Every figure, in order."""
        for section in self.sections:
            yield from section.figures
