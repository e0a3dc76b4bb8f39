"""Writes a report: `index.html`, `tables/` as Markdown, LaTeX and CSV, and `data/` with the data of the figures.

The page is self-contained; the directories beside it are for papers and programs. Everything is rendered before
anything is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_train.core.errors import UserError
from lt_train.core.imports import require
from lt_train.core.io import atomic_file, writing
from sweeps.analysis.load import Sweep, read_sweeps
from sweeps.analysis.matrix_table import matrix_table
from sweeps.reporting.class_figures import classes_shown
from sweeps.reporting.model import Figure, Section, SweepReport, Table, as_csv, as_latex, as_markdown, format_cell
from sweeps.reporting.sections import shared_sections, sweep_report
from sweeps.reporting.svg import draw_svg
from sweeps.reporting.tables import all_runs, per_class
from sweeps.store.directory import load_matrix_directory
from sweeps.store.layout import is_matrix

PAGE = Path("index.html")

GENERATOR = "lt-sweep report"
"""Value of the page's `generator` meta tag. A directory with such a page may be overwritten."""


@dataclass(frozen=True)
class Written:
    """A report on disk, and its content."""

    page: Path
    reports: tuple[SweepReport, ...]


def report(*runs: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of one or more sweeps, finished or not, and return its page.

    Args:
        runs: open sweeps, directories of sweeps or matrices, or `result.json` files. A matrix stands for those of its
            sweeps that were started. Nothing is trained and no lease is taken.
        out: directory to write to; None: `report/` in the directory, if there is only one.

    Raises:
        UserError: one of them is not a sweep directory, or `out` contains something else than a report.
        StorageError: the report cannot be written.
    """
    return write(runs, out).page


def write(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Written:
    """As `report`, and return the content too."""
    require("jinja2", "matplotlib")
    if not runs:
        raise UserError("a report needs at least one sweep directory, got none")
    matrices = [load_matrix_directory(Path(run)) for run in runs if is_matrix(Path(run))]
    sweeps = read_sweeps(runs)
    names = [sweep.spec.name for sweep in sweeps]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"sweeps of one report must have different names, got more than once: {', '.join(twice)}")
    if out is None and len(runs) > 1:
        raise UserError("a report of several sweeps needs an output directory; give one with --out DIRECTORY")
    home = Path(runs[0]).expanduser() if matrices else sweeps[0].path
    place = home / "report" if out is None else Path(out).expanduser()
    reports = tuple(sweep_report(sweep, sweeps) for sweep in sweeps)
    files = _files(sweeps, reports, shared_sections(sweeps, [matrix_table(matrix) for matrix in matrices]))
    _clear(place, files)
    with atomic_file(place / PAGE) as file:  # first: the page identifies an interrupted report
        file.write_text(files.pop(PAGE))
    with writing(place):
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    return Written(place / PAGE, reports)


def _clear(place: Path, files: Mapping[Path, str]) -> None:
    """Remove an earlier report, which may have other tables; refuse to overwrite anything else.

    A report that was interrupted before it had a page contains nothing but `files`.
    """
    old = place / PAGE
    if old.exists():
        if f'content="{GENERATOR}"' not in old.read_text(errors="replace"):
            raise UserError(f"{old} was not written by lt-sweep report and is not overwritten; give another --out")
        with writing(place):
            for part in ("tables", "data"):
                shutil.rmtree(place / part, ignore_errors=True)
    elif place.exists() and not (place.is_dir() and all(_ours(place, file, files) for file in place.rglob("*"))):
        raise UserError(f"{place} must be a new or empty directory, or contain an earlier report; give another --out")


def _ours(place: Path, file: Path, files: Mapping[Path, str]) -> bool:
    return file.is_dir() or file.relative_to(place) in files or file.name.startswith(f".{PAGE}.")


def _files(sweeps: Sequence[Sweep], reports: Sequence[SweepReport], first: Sequence[Section]) -> dict[Path, str]:
    """The content of all files of a report, by path in its directory."""
    files = {PAGE: page(f"{', '.join(one.name for one in reports)}: sweep report", reports, first)}
    for sweep, report in zip(sweeps, reports, strict=True):
        own = report.name if len(reports) > 1 else ""
        files |= _tables(Path("tables", own), report.tables())
        more = [all_runs(sweep.every), per_class(sweep, classes_shown(sweep))]
        data = [*(figure.table() for figure in report.figures()), *(one for one in more if one is not None)]
        files |= {Path("data", own, f"{one.name}.csv"): as_csv(one) for one in data}
    files |= {
        Path("data", f"{figure.name}.csv"): as_csv(figure.table()) for section in first for figure in section.figures
    }
    return files | _tables(Path("tables"), [table for section in first for table in section.tables])


def _tables(place: Path, tables: Iterable[Table]) -> dict[Path, str]:
    formats = {"md": as_markdown, "tex": as_latex, "csv": as_csv}
    return {place / f"{one.name}.{kind}": formatted(one) for one in tables for kind, formatted in formats.items()}


def page(title: str, reports: Sequence[SweepReport], first: Sequence[Section]) -> str:
    """The HTML page: a single file, from `page.html.j2`; `first` are sections about several sweeps."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def svg(figure: Figure, prefix: str) -> Markup:
        return Markup(draw_svg(figure, f"{prefix}-{figure.name}"))

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"shown": format_cell, "svg": svg, "generator": GENERATOR}
    return environment.get_template("page.html.j2").render(title=title, reports=reports, first=first)
