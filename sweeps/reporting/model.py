"""Content of a report as plain data: tables with typed cells, and figures as the series they show.

The CSV file of a figure is made from the series that are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sweeps.analysis.statistics import Estimate

__all__ = [
    "Cell",
    "Column",
    "Figure",
    "Line",
    "Panel",
    "Section",
    "Series",
    "SweepReport",
    "Table",
    "Verdict",
]

Kind = Literal["text", "percent", "points", "gain", "number", "loma", "count", "p"]
"""Format of a column. Percent, points and gain show fractions times 100; points and gain have a sign. Estimates are
shown with half the width of their interval, in a points column with its ends. A number has 3 significant digits, loma
3 decimals."""


Cell = str | int | float | Estimate | None
"""None is an unknown value, shown as a dash."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """A table. `name` is that of its files, `note` is shown below it; `strong` rows and `strong_cells` are bold."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    strong: frozenset[int] = frozenset()
    strong_cells: frozenset[tuple[int, int]] = frozenset()

    def is_strong(self, row: int, column: int) -> bool:
        """Whether a cell is bold."""
        return row in self.strong or (row, column) in self.strong_cells


@dataclass(frozen=True)
class Series:
    """One series of a panel. None in `y` is a gap.

    Attributes:
        style: index of colour, marker and dash.
        value: shades points or cells, and sizes points, by rank.
        label: text of single cells.
        faint: drawn in the background.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: Literal["line", "points", "hollow", "steps", "bars", "cells", "cross", "star"] = "line"
    style: int = 0
    value: Sequence[float] | None = None
    label: Sequence[str] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Line:
    """A reference line across a panel at `x` or `y`."""

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
    """Panels, `columns` in a row. `alt` describes the figure in words; `data` replaces the table of its series."""

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    columns: int = 2
    data: Table | None = None

    def table(self) -> Table:
        """The plotted data, one row per point."""
        if self.data is not None:
            return self.data
        titles = ("panel", "series", self.panels[0].x_label or "x", self.panels[0].y_label or "y")
        columns = [*map(Column, titles), *map(Column, ("value", "label"))]
        return Table(self.name, self.title, tuple(columns), tuple(self._points()))

    def _points(self) -> Iterator[tuple[Cell, ...]]:
        for panel in self.panels:
            for one in panel.series:
                beside = [one.value, one.label]
                for place, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
                    extra = [None if values is None else values[place] for values in beside]
                    yield (panel.title, one.name, (panel.x_ticks or {}).get(x, x), y, *extra)
            for line in panel.lines:
                yield (panel.title, line.name, line.x, line.y, None, None)


@dataclass(frozen=True)
class Verdict:
    """The start of a report: the outcome and its limits.

    Attributes:
        headline: the winner and its accuracy.
        about: what was searched on which data.
        selected: how the winner was selected.
        params: its searched values.
        numbers: its accuracy by split.
        gains: over baselines and runner-up, with tests.
        cautions: limits of these numbers.
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
    """One section of a report."""

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class SweepReport:
    """The report of one sweep."""

    name: str
    verdict: Verdict
    sections: tuple[Section, ...] = field(default=())

    def tables(self) -> Iterator[Table]:
        """All tables, those of the verdict first."""
        yield from (table for table in (self.verdict.numbers, self.verdict.gains) if table is not None)
        for section in self.sections:
            yield from section.tables

    def figures(self) -> Iterator[Figure]:
        """All figures, in order."""
        for section in self.sections:
            yield from section.figures
