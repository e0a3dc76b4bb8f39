"""Sizes of memory as people write them: `2GiB`, `500 MiB`, or plain bytes. Knows pydantic only."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

__all__ = ["MemorySize", "enough", "shown_size"]

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_PATTERN = r"^\d+(\.\d+)? ?(KiB|MiB|GiB)$"


def shown_size(count: float) -> str:
    """`count` bytes to three digits, such as `1.19 MiB`."""
    for unit in ("B", *UNITS):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def enough(count: float) -> str:
    """The least size in whole MiB that holds `count` bytes, as a sweep file takes it."""
    return f"{math.ceil(count / UNITS['MiB'])}MiB"


def _parsed(value: Any) -> Any:
    """The bytes that a text stands for; whatever is no text is returned as it is, for the field to judge."""
    if not isinstance(value, str):
        return value
    if not re.match(_PATTERN, value):
        raise ValueError(f"must be a size such as 2GiB or 500MiB (KiB, MiB, GiB), or a number of bytes, got {value!r}")
    return int(float(value[:-3]) * UNITS[value[-3:]])


def _written(count: int) -> int | str:
    """The shortest text that reads back as exactly `count` bytes, or the number itself."""
    for unit, size in reversed(UNITS.items()):
        if count % size == 0:
            return f"{count // size}{unit}"
    return count


MemorySize = Annotated[
    int,
    BeforeValidator(_parsed),
    Field(gt=0),
    PlainSerializer(_written),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "pattern": _PATTERN}]}),
]
"""Bytes, > 0; a sweep file may give a unit. Written out in the largest unit that is exact."""
