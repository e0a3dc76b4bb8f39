"""Times, durations and amounts of memory as text: `3.5 minutes`, `2GiB`."""

from __future__ import annotations

import math
import re
import time
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

__all__ = ["MemorySize", "format_bytes", "format_duration", "format_time", "whole_mebibytes"]


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


UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_PATTERN = r"^\d+(\.\d+)? ?(KiB|MiB|GiB)$"


def format_bytes(count: float) -> str:
    """`count` bytes to three digits, such as `1.19 MiB`."""
    for unit in ("B", *UNITS):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def whole_mebibytes(count: float) -> str:
    """`count` bytes rounded up to whole MiB, in the form of a sweep file."""
    return f"{math.ceil(count / UNITS['MiB'])}MiB"


def _parse(value: Any) -> Any:
    """Bytes from text. Any other value is returned unchanged, to be validated by the field."""
    if not isinstance(value, str):
        return value
    if not re.match(_PATTERN, value):
        raise ValueError(f"must be a size such as 2GiB or 500MiB (KiB, MiB, GiB), or a number of bytes, got {value!r}")
    return int(float(value[:-3]) * UNITS[value[-3:]])


def _serialize(count: int) -> int | str:
    """`count` bytes in the largest unit that is exact, or the number itself."""
    for unit, size in reversed(UNITS.items()):
        if count % size == 0:
            return f"{count // size}{unit}"
    return count


MemorySize = Annotated[
    int,
    BeforeValidator(_parse),
    Field(gt=0),
    PlainSerializer(_serialize),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "pattern": _PATTERN}]}),
]
"""Bytes, > 0, optionally written with a unit."""
