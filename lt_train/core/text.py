"""User-facing text: progress, times, durations and amounts of memory.

The progress of long work is a bar with rate and remaining time on a terminal, a bar below the cell in a notebook, and
otherwise periodic log messages.
"""

from __future__ import annotations

import contextlib
import html
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = [
    "MemorySize",
    "ProgressCallback",
    "format_bytes",
    "format_duration",
    "format_rate",
    "format_time",
    "progress",
    "whole_mebibytes",
]


ProgressCallback = Callable[[int, int, str], None]
"""`callback(done, total, note)`. A non-empty note is shown beside the count."""

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPDATES = 0.2
logger = logging.getLogger(__name__)


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
    with _shown(title, unit) as show:

        def report(done: int, total: int, note: str = "") -> None:
            show(done, total, note)
            if on_progress is not None:
                on_progress(f"{title}: {done} of {total} {unit}s")

        yield report


def _shown(title: str, unit: str) -> contextlib.AbstractContextManager[ProgressCallback]:
    if _is_notebook():
        return contextlib.nullcontext(_notebook(title, unit))
    console = Console(stderr=True)
    return _bar(console, title, unit) if console.is_terminal else contextlib.nullcontext(_lines(title, unit))


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
            rate = f"{format_rate(speed)} {unit}s/s" if speed else ""
            bar.update(task, completed=done, total=total, rate=rate, note=note)

        yield report


def _is_notebook() -> bool:
    """Whether this is the process of a notebook, which shows rich output."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def _notebook(title: str, unit: str) -> ProgressCallback:
    """A bar below the cell, updated in place."""
    from IPython.display import display

    handle, begun, first, last = None, time.monotonic(), None, 0.0

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal handle, begun, first, last
        now = time.monotonic()
        if first is None:
            begun, first = now, done
        if handle is not None and done < total and now - last < _SECONDS_BETWEEN_UPDATES:
            return
        last = now
        rate = (done - first) / (now - begun) if now - begun > 1.0 else 0.0
        left = f", {format_duration((total - done) / rate)} left" if rate and done < total else ""
        text = f"{title}: {done} of {total} {unit}s{left}{f', {note}' if note else ''}"
        bar = f'<progress value="{done}" max="{total}"></progress> {html.escape(text)}'
        data = {"text/plain": text, "text/html": bar}
        if handle is None:
            handle = display(data, raw=True, display_id=True)
        else:
            handle.update(data, raw=True)

    return report


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
        # Units that existed before are counted at once; a rate over less than a second would be theirs.
        rate = (done - first) / (now - begun) if now - begun > 1.0 else 0.0
        left = f", {format_rate(rate)} {unit}s/s, {(total - done) / rate:.0f} s left" if rate else ""
        logger.info(f"{title}: {done}/{total} {unit}s{left}{f', {note}' if note else ''}")

    return report


def format_rate(rate: float) -> str:
    """Three digits without an exponent: `0.0125`, `3.46`, `34,500`."""
    return f"{rate:.3g}" if rate < 1000 else f"{float(f'{rate:.3g}'):,.0f}"


def format_time(at_ms: int) -> str:
    """A point in time, in milliseconds since 1970, as local time: `2026-11-25 09:30:00`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def format_duration(seconds: float) -> str:
    """`40 s`, `3.5 minutes`, `12 hours`."""
    amount, unit = seconds, "s"
    if seconds >= 7200:
        amount, unit = seconds / 3600, "hours"
    elif seconds >= 120:
        amount, unit = seconds / 60, "minutes"
    return f"{amount:.2g} {unit}" if amount < 10 else f"{amount:.0f} {unit}"


MEMORY_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MEMORY_PATTERN = r"^\d+(\.\d+)? ?(KiB|MiB|GiB)$"


def format_bytes(count: float) -> str:
    """`count` bytes to three digits, such as `1.19 MiB`."""
    for unit in ("B", *MEMORY_UNITS):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def whole_mebibytes(count: float) -> str:
    """`count` bytes rounded up to whole MiB, in the form of a sweep file."""
    return f"{math.ceil(count / MEMORY_UNITS['MiB'])}MiB"


def _parse_memory(value: Any) -> Any:
    """Bytes from text. Any other value is returned unchanged, to be validated by the field."""
    if not isinstance(value, str):
        return value
    if not re.match(_MEMORY_PATTERN, value):
        raise ValueError(f"must be a size such as 2GiB or 500MiB (KiB, MiB, GiB), or a number of bytes, got {value!r}")
    return int(float(value[:-3]) * MEMORY_UNITS[value[-3:]])


def _serialize_memory(count: int) -> int | str:
    """`count` bytes in the largest unit that is exact, or the number itself."""
    for unit, size in reversed(MEMORY_UNITS.items()):
        if count % size == 0:
            return f"{count // size}{unit}"
    return count


MemorySize = Annotated[
    int,
    BeforeValidator(_parse_memory),
    Field(gt=0),
    PlainSerializer(_serialize_memory),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "pattern": _MEMORY_PATTERN}]}
    ),
]
"""Bytes, > 0, optionally written with a unit."""
