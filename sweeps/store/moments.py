"""Moments and durations as people read them: `2026-11-25 09:30:00`, `3.5 minutes`. Knows nothing of this package."""

from __future__ import annotations

import time

__all__ = ["shown_duration", "shown_moment"]


def shown_moment(at_ms: int) -> str:
    """A moment in milliseconds since 1970, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def shown_duration(seconds: float) -> str:
    """`40 s`, `3.5 minutes`, `12 hours`."""
    amount, unit = seconds, "s"
    if seconds >= 7200:
        amount, unit = seconds / 3600, "hours"
    elif seconds >= 120:
        amount, unit = seconds / 60, "minutes"
    return f"{amount:.2g} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
