"""What a report wrote, as a test reads it; and a sweep as a kill leaves it."""

from __future__ import annotations

import csv
import html
import re
import shutil
from pathlib import Path

import sweeps
from sweeps.config.spec import SweepSpec
from sweeps.reporting.write import Written, write

__all__ = ["NO_MARK_UP", "cut_short", "directory", "figures", "reported", "rows", "text"]

NO_MARK_UP = re.compile(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", re.DOTALL)


def directory(spec: SweepSpec) -> Path:
    """Of a sweep that ran."""
    return Path(spec.storage) / spec.name


def reported(spec: SweepSpec, out: Path | None = None) -> Written:
    """The report of a sweep, which is run for it."""
    sweeps.run(spec)
    return write([directory(spec)], out)


def text(written: Written) -> str:
    """What a reader reads."""
    return " ".join(html.unescape(NO_MARK_UP.sub(" ", written.page.read_text())).split())


def rows(file: Path) -> list[dict[str, str]]:
    """Of a CSV file, by title."""
    with file.open() as stream:
        return list(csv.DictReader(stream))


def figures(written: Written) -> set[str]:
    """Names of all figures."""
    return {figure.name for report in written.reports for figure in report.figures()}


def cut_short(spec: SweepSpec, lines: int) -> None:
    """Leave of a finished sweep what a kill would have left after so many lines of its ledger."""
    place = directory(spec)
    (place / "result.json").unlink()
    shutil.rmtree(place / "artifacts")
    kept = (place / "ledger.jsonl").read_bytes().splitlines(keepends=True)[:lines]
    (place / "ledger.jsonl").write_bytes(b"".join(kept) + b'{"term":1,"pack":"cut of')
