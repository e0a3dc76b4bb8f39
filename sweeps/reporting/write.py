"""Writes a report: `index.html`, `tables/` as Markdown, LaTeX and CSV, and `data/` with what was drawn.

The page is whole by itself; the directories beside it are for papers and programs. All of it is made before any of it
is written. Knows files and every other part of
the room.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_train.core.errors import UserError
from lt_train.core.io import atomic_file, writing
from sweeps.analysis.load import Sweep, read_sweeps
from sweeps.analysis.matrix_table import matrix_table
from sweeps.reporting.class_figures import classes_shown
from sweeps.reporting.formats import as_csv, as_latex, as_markdown
from sweeps.reporting.html import GENERATOR, page
from sweeps.reporting.model import Report, Section, Table
from sweeps.reporting.sections import beside, compose
from sweeps.reporting.tables import all_trials, per_class
from sweeps.store.layout import is_matrix
from sweeps.store.matrix_directory import load_known_matrix

__all__ = ["Written", "write", "write_report"]

PAGE = Path("index.html")


@dataclass(frozen=True)
class Written:
    """A report on disk, and what it holds."""

    page: Path
    reports: tuple[Report, ...]


def write_report(*runs: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of one or more sweeps, finished or not, and return its page.

    Args:
        runs: directories of sweeps or matrices, or a sweep's `result.json`. A matrix stands for those of its sweeps
            that have begun. Nothing is trained, no lease is taken.
        out: directory to write to; None: `report/` in the directory, where there is one.

    Raises:
        UserError: one of them is no sweep directory, or `out` holds something that is no report.
        StorageError: it cannot be written.
    """
    return write(runs, out).page


def write(runs: Sequence[str | Path], out: str | Path | None = None) -> Written:
    """As `write_report`, with what was written."""
    if not runs:
        raise UserError("a report is of at least one sweep directory, got none")
    families = [load_known_matrix(Path(run)) for run in runs if is_matrix(Path(run))]
    sweeps = read_sweeps(runs)
    names = [sweep.spec.name for sweep in sweeps]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"sweeps of one report must have names of their own, got {', '.join(twice)} more than once")
    if out is None and len(runs) > 1:
        raise UserError("a report of several sweeps belongs to none of them: say where it goes with --out DIRECTORY")
    home = Path(runs[0]).expanduser() if families else sweeps[0].path
    place = home / "report" if out is None else Path(out).expanduser()
    reports = tuple(compose(sweep, sweeps) for sweep in sweeps)
    files = _files(sweeps, reports, beside(sweeps, [matrix_table(matrix) for matrix in families]))
    _make_room(place, files)
    with atomic_file(place / PAGE) as file:  # first: by its page the next report knows what an interrupted one left
        file.write_text(files.pop(PAGE))
    with writing(place):
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    return Written(place / PAGE, reports)


def _make_room(place: Path, files: Mapping[Path, str]) -> None:
    """Clear what an earlier report left, which may have had tables that this one has not; refuse anything else.

    An earlier one that was interrupted before it had its page holds nothing but `files`.
    """
    old = place / PAGE
    if old.exists():
        if f'content="{GENERATOR}"' not in old.read_text(errors="replace"):
            raise UserError(f"{old} is no report of ours and is not written over; say another --out")
        with writing(place):
            for part in ("tables", "data"):
                shutil.rmtree(place / part, ignore_errors=True)
    elif place.exists() and not (place.is_dir() and all(_ours(place, file, files) for file in place.rglob("*"))):
        raise UserError(f"{place} must be a new or empty directory, or hold an earlier report; say another --out")


def _ours(place: Path, file: Path, files: Mapping[Path, str]) -> bool:
    return file.is_dir() or file.relative_to(place) in files or file.name.startswith(f".{PAGE}.")


def _files(sweeps: Sequence[Sweep], reports: Sequence[Report], first: Sequence[Section]) -> dict[Path, str]:
    """All that a report consists of, by its path in the report's directory."""
    files = {PAGE: page(f"{', '.join(one.name for one in reports)}: sweep report", reports, first)}
    for sweep, report in zip(sweeps, reports, strict=True):
        own = report.name if len(reports) > 1 else ""
        files |= _tables(Path("tables", own), report.tables())
        more = [all_trials(sweep), per_class(sweep, classes_shown(sweep))]
        data = [*(figure.table() for figure in report.figures()), *(one for one in more if one is not None)]
        files |= {Path("data", own, f"{one.name}.csv"): as_csv(one) for one in data}
    files |= {
        Path("data", f"{figure.name}.csv"): as_csv(figure.table()) for section in first for figure in section.figures
    }
    return files | _tables(Path("tables"), [table for section in first for table in section.tables])


def _tables(place: Path, tables: Iterable[Table]) -> dict[Path, str]:
    formats = {"md": as_markdown, "tex": as_latex, "csv": as_csv}
    return {place / f"{one.name}.{kind}": formatted(one) for one in tables for kind, formatted in formats.items()}
