"""Writes a report: `index.html`, `tables/` as Markdown, LaTeX and CSV, and `data/` with what was drawn.

The page is whole by itself; the directories beside it are for papers and programs. Knows files and every other part of
the room.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_train.errors import UserError
from lt_train.storage import atomic_file, writing
from sweeps.report.class_figures import classes_shown
from sweeps.report.composing import compose, overview
from sweeps.report.content import Report, Table
from sweeps.report.formats import as_csv, as_latex, as_markdown
from sweeps.report.page import GENERATOR, page
from sweeps.report.reading import Sweep, read_sweep
from sweeps.report.tables import all_trials, per_class

__all__ = ["Written", "write", "write_report"]


@dataclass(frozen=True)
class Written:
    """A report on disk, and what it holds."""

    page: Path
    reports: tuple[Report, ...]


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of one or more sweeps, finished or not, and return its page.

    Args:
        runs: sweep directories, or the `result.json` in them. Nothing is trained, no lease is taken.
        out: directory to write to; None: `report/` in the sweep's directory, where there is one sweep.

    Raises:
        UserError: one of them is no sweep directory, or `out` holds something that is no report.
        StorageError: it cannot be written.
    """
    return write(runs, out).page


def write(runs: Sequence[str | Path], out: str | Path | None = None) -> Written:
    """As `write_report`, with what was written."""
    if not runs:
        raise UserError("a report is of at least one sweep directory, got none")
    sweeps = [read_sweep(run) for run in runs]
    names = [sweep.spec.name for sweep in sweeps]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"sweeps of one report must have names of their own, got {', '.join(twice)} more than once")
    if out is None and len(sweeps) > 1:
        raise UserError("a report of several sweeps belongs to none of them: say where it goes with --out DIRECTORY")
    place = sweeps[0].path / "report" if out is None else Path(out).expanduser()
    _make_room(place)
    reports = tuple(compose(sweep, sweeps) for sweep in sweeps)
    table = overview(sweeps) if len(sweeps) > 1 else None
    title = f"{', '.join(names)}: sweep report"
    for sweep, report in zip(sweeps, reports, strict=True):
        own = Path(report.name) if len(reports) > 1 else Path()
        _write_tables(place / "tables" / own, report.tables())
        _write_data(place / "data" / own, sweep, report)
    if table is not None:
        _write_tables(place / "tables", [table])
    with atomic_file(place / "index.html") as file:
        file.write_text(page(title, reports, table))
    return Written(place / "index.html", reports)


def _make_room(place: Path) -> None:
    """Clear what an earlier report left, which may have had tables that this one has not; refuse anything else."""
    old = place / "index.html"
    if old.exists():
        if f'content="{GENERATOR}"' not in old.read_text(errors="replace"):
            raise UserError(f"{old} is no report of ours and is not written over; say another --out")
        with writing(place):
            for part in ("tables", "data"):
                shutil.rmtree(place / part, ignore_errors=True)
    elif place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} must be a new or empty directory, or hold an earlier report; say another --out")
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)


def _write_tables(place: Path, tables: Iterable[Table]) -> None:
    formats = {"md": as_markdown, "tex": as_latex, "csv": as_csv}
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        for table in tables:
            for ending, formatted in formats.items():
                (place / f"{table.name}.{ending}").write_text(formatted(table))


def _write_data(place: Path, sweep: Sweep, report: Report) -> None:
    more = [all_trials(sweep), per_class(sweep, classes_shown(sweep))]
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        for table in [*(figure.table() for figure in report.figures()), *more]:
            if table is not None:
                (place / f"{table.name}.csv").write_text(as_csv(table))
