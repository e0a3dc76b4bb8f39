"""Progress of long work on standard error: a bar with rate and time left on a terminal, occasional lines elsewhere.

Standard output stays free for results. Knows rich only.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Report", "progress", "tell"]

Report = Callable[[int, int, str], None]
"""`report(done, total, note)`; a note that is not empty is shown beside the count."""

_SECONDS_BETWEEN_LINES = 10.0


def tell(text: str) -> None:
    """Print a line on standard error; where that cannot be written, as on a full disk, the work goes on untold."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(title: str, unit: str = "epoch", told: Callable[[str], None] | None = None) -> Iterator[Report]:
    """Show how far `title` is, in `unit`s, as long as the block runs; yields what to call along the way.

    Args:
        title: what is being done.
        unit: what is counted.
        told: hears it too, as `title: 3 of 20 epochs`, at every report.
    """
    console = Console(stderr=True)
    with _bar(console, title, unit) if console.is_terminal else contextlib.nullcontext(_lines(title, unit)) as show:

        def report(done: int, total: int, note: str = "") -> None:
            show(done, total, note)
            if told is not None:
                told(f"{title}: {done} of {total} {unit}s")

        yield report


@contextlib.contextmanager
def _bar(console: Console, title: str, unit: str) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}s"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, rate="", note="")

        def report(done: int, total: int, note: str = "") -> None:
            speed = bar.tasks[task].speed
            rate = f"{speed:.3g} {unit}s/s" if speed else ""
            bar.update(task, completed=done, total=total, rate=rate, note=note)

        yield report


def _lines(title: str, unit: str) -> Report:
    begun, first, reports, last_line = time.monotonic(), 0, 0, 0.0

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal begun, first, reports, last_line
        now = time.monotonic()
        if reports < 2 and done < total:  # not from the beginning: before the first is done workers start, once
            begun, first, reports = now, done, reports + 1
        if done < total and now - last_line < _SECONDS_BETWEEN_LINES:
            return
        last_line = now
        rate = (done - first) / max(now - begun, 1e-9)
        left = f", {rate:.3g} {unit}s/s, {(total - done) / rate:.0f} s left" if rate else ""
        tell(f"{title}: {done}/{total} {unit}s{left}{f', {note}' if note else ''}")

    return report
