"""Helpers to read a written report, and to cut a sweep short as an interruption would."""

from __future__ import annotations

import csv
import html
import re
import shutil
from pathlib import Path

from support.ledgers import cut

import sweeps
from sweeps.config.spec import SweepSpec
from sweeps.reporting.write import Written, write

__all__ = ["NO_MARK_UP", "cut_short", "directory", "figures", "reported", "rows", "text"]

NO_MARK_UP = re.compile(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", re.DOTALL)


def directory(spec: SweepSpec) -> Path:
    """Directory of a sweep."""
    return Path(spec.storage) / spec.name


def reported(spec: SweepSpec, out: Path | None = None) -> Written:
    """Run a sweep and write its report."""
    sweeps.run(spec)
    return write([directory(spec)], out)


def text(written: Written) -> str:
    """Visible text of the page, without figures."""
    return " ".join(html.unescape(NO_MARK_UP.sub(" ", written.page.read_text())).split())


def rows(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column title."""
    with file.open() as stream:
        return list(csv.DictReader(stream))


def figures(written: Written) -> set[str]:
    """Names of all figures of a report."""
    return {figure.name for report in written.reports for figure in report.figures()}


def cut_short(spec: SweepSpec, packs: int) -> None:
    """Reduce a finished sweep to what an interruption leaves while the lines of the pack after these are written."""
    place = directory(spec)
    shutil.rmtree(place / "artifacts")
    cut(place, packs, proposed=True)
    with (place / "ledger.jsonl").open("ab") as file:
        file.write(b'{"event":"run","term":1,"trial":"cut of')
