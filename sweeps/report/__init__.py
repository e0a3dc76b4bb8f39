"""Figures, tables and pages from sweeps. The room can be called: `sweeps.report("runs/mine")` writes a sweep's report.

`reading` takes a sweep from disk, finished or not; `compare`, `verdict`, `tables` and the `*_figures` say what is in a
report, as plain data (`content`); `drawing`, `formats` and `page` turn that into SVG, Markdown, LaTeX, CSV and HTML;
`writing` calls them. `terminal`, `progress`, `markdown`, `artifacts` and `figures` are what a running sweep shows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


class _Room(ModuleType):
    """A module of this name would hide a function of it in `sweeps`, so the module itself is the function."""

    def __call__(self, *runs: str | Path, out: str | Path | None = None) -> Path:
        """See `sweeps.report.writing.write_report`."""
        from sweeps.report.writing import write_report

        return write_report(runs, out)


sys.modules[__name__].__class__ = _Room
