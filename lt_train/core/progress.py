"""Progress of long work: a bar with rate and remaining time on a terminal, otherwise periodic log messages."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["ProgressCallback", "progress"]

ProgressCallback = Callable[[int, int, str], None]
"""`callback(done, total, note)`. A non-empty note is shown beside the count."""

_SECONDS_BETWEEN_LINES = 10.0
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(
    title: str, unit: str = "epoch", on_progress: Callable[[str], None] | None = None
) -> Iterator[ProgressCallback]:
    """Show the progress of a task while the block runs. Yields the callback to report progress with.

    Args:
        title: name of the task.
        unit: what is counted, in the singular.
        on_progress: called at every report with text such as `title: 3 of 20 epochs`.
    """
    console = Console(stderr=True)
    with _bar(console, title, unit) if console.is_terminal else contextlib.nullcontext(_lines(title, unit)) as show:

        def report(done: int, total: int, note: str = "") -> None:
            show(done, total, note)
            if on_progress is not None:
                on_progress(f"{title}: {done} of {total} {unit}s")

        yield report


@contextlib.contextmanager
def _bar(console: Console, title: str, unit: str) -> Iterator[ProgressCallback]:
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


def _lines(title: str, unit: str) -> ProgressCallback:
    begun, first, reports, last_line = time.monotonic(), 0, 0, 0.0

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal begun, first, reports, last_line
        now = time.monotonic()
        if reports < 2 and done < total:  # the rate excludes the first unit, which includes the start of workers
            begun, first, reports = now, done, reports + 1
        if done < total and now - last_line < _SECONDS_BETWEEN_LINES:
            return
        last_line = now
        rate = (done - first) / max(now - begun, 1e-9)
        left = f", {rate:.3g} {unit}s/s, {(total - done) / rate:.0f} s left" if rate else ""
        _logger.info(f"{title}: {done}/{total} {unit}s{left}{f', {note}' if note else ''}")

    return report
