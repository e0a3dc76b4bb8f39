"""Amounts of memory: `2GiB`, `500 MiB`, or a number of bytes."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

__all__ = ["MemorySize", "format_bytes", "whole_mebibytes"]

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
