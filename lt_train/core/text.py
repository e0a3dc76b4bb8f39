"""Points in time and durations as text for people."""

from __future__ import annotations

import time

__all__ = ["format_duration", "format_time"]


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
