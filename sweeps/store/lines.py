"""Lines that end with a digest of their own bytes, so that a damaged line is noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_train.core.errors import LongtailError
from lt_train.core.io import digest

__all__ = ["Line", "read_lines", "with_check"]

_CHECK = re.compile(rb'(.*),"check":"([0-9a-f]{32})"\}', re.DOTALL)
"""A line; the digest is that of the JSON object without `check`."""

_SOUND = re.compile(rb'\{"event"(?:(?!\{"event").)*?,"check":"[0-9a-f]{32}"\}', re.DOTALL)
"""A line anywhere in a text, also where the end of the line before it is damaged."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line, and where it ends in the file, in bytes; a damaged one has no document."""

    number: int
    text: bytes
    end: int
    document: dict[str, Any] | None


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file. What a crash has cut short at the end is left out. Only a newline ends a line.

    Raises:
        LongtailError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise LongtailError(
            f"{path} cannot be read ({error.strerror}); restore it, or start over with --fresh"
        ) from None
    end = 0
    texts = content.split(b"\n")
    for number, text in enumerate(texts, start=1):
        document, is_last = _checked(text), number == len(texts)  # only a line that is cut short is not ended
        sound = [] if document is not None else [(one, _checked(one)) for one in _SOUND.findall(text)]
        if is_last and document is None and not any(found for _, found in sound):
            return
        end += len(text) + (not is_last)
        for one, found in sound:
            if found is not None:
                yield Line(number, one, end, found)
        yield Line(number, text, end, document)


def _checked(text: bytes) -> dict[str, Any] | None:
    """The document in a line; None if it is damaged."""
    found = _CHECK.fullmatch(text)
    if found is None or digest(found[1] + b"}") != found[2].decode():
        return None
    document: dict[str, Any] = json.loads(found[1] + b"}")
    return document


def with_check(document: Mapping[str, Any]) -> bytes:
    """The line of a document, with its digest as the last field, `check`, and a newline."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return text[:-1] + b',"check":"' + digest(text).encode() + b'"}\n'
