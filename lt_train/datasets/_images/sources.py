"""Where the bytes of images are, and what is wrong with those that cannot be used.

A kind of images in files brings a `Source`; nothing else opens an image's file. What a damaged image may do and
what a machine may fail at are told apart here. Knows nothing of labels, splits or specs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lt_train.core.errors import StorageError, first_line
from lt_train.datasets._images.decode_pool import in_threads, pieces
from lt_train.datasets._images.decoding import Decoding, Framing

__all__ = ["EMPTY", "MISSING", "Files", "Source", "decoded", "probe"]

MISSING, EMPTY = "missing", "0 bytes"
"""What `probe` says of an image that is not there, and of one that holds nothing."""

_NO_FILE = {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""What the machine says of a name under which there can be no image; all else it says is of the machine."""

_AT_ONCE = 256
"""Images a thread checks before it reports."""


class Source(Protocol):
    """Where the bytes of images are: `names[i]` is what image i is called, the same on every machine."""

    @property
    def names(self) -> Sequence[str]:
        """One an image."""

    def read(self, index: int) -> bytes:
        """All of an image; OSError where that cannot be."""

    def ends(self, index: int) -> tuple[int, bytes, bytes]:
        """How many bytes an image has, its first three and its last two; OSError where that cannot be."""


@dataclass(frozen=True)
class Files:
    """Images that are a file each, named by their paths below `root`."""

    root: Path
    names: Sequence[str]

    def read(self, index: int) -> bytes:
        """The file's content."""
        return (self.root / self.names[index]).read_bytes()

    def ends(self, index: int) -> tuple[int, bytes, bytes]:
        """Size, first three bytes and last two, without reading the rest."""
        with open(self.root / self.names[index], "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(3)
            file.seek(max(size - 2, 0))
            return size, head, file.read(2)


def decoded(
    source: Source, index: int, decoding: Decoding, framing: Framing | None = None, *, tell: bool = False
) -> np.ndarray[Any, Any] | str:
    """The image, or what is wrong with it.

    Args:
        source: where its bytes are.
        index: which of the source's.
        decoding: how its bytes become pixels.
        framing: what part of it.
        tell: tell of an image that is there and that the machine cannot read as of the others.

    Raises:
        StorageError: the machine cannot read it, which says nothing of the image; not with `tell`.
    """
    try:
        content = source.read(index)
    except OSError as error:
        return _unread(source.names[index], error, tell)
    if not content:
        return EMPTY
    try:
        return decoding(content, framing)
    except MemoryError:
        raise
    except Exception as error:  # a damaged image may raise anything
        return _reason(error)


def probe(
    source: Source,
    decoding: Decoding,
    *,
    whole: bool,
    tell: bool = False,
    report: Callable[[int], None] | None = None,
) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
    """Look at every image of `source`.

    Args:
        source: the images.
        decoding: what they must survive.
        whole: decode each. Otherwise a file that begins and ends as a JPEG does is believed to be one, which finds the
            missing, the empty, the truncated and what is no image; other formats are decoded in any case.
        tell: go on after an image that is there and that the machine cannot read, and tell of it like of the others.
        report: called with the number of images that were looked at since the last call.

    Returns:
        Bytes of every image (0 where unknown), int64 `[N]`, and what is wrong with those that cannot be used.

    Raises:
        StorageError: the machine cannot read an image, which says nothing of the image; not with `tell`.
    """
    count = len(source.names)
    sizes, wrong = np.zeros(count, dtype=np.int64), dict[int, str]()

    def look(piece: range) -> int:
        for index in piece:
            sizes[index], reason = _look(source, index, decoding, whole, tell)
            if reason:
                wrong[index] = reason
        return len(piece)

    for looked_at in in_threads(look, pieces(count, _AT_ONCE)):
        if report:
            report(looked_at)
    return sizes, dict(sorted(wrong.items()))


def _look(source: Source, index: int, decoding: Decoding, whole: bool, tell: bool) -> tuple[int, str]:
    try:
        size, head, tail = source.ends(index)
    except OSError as error:
        return 0, _unread(source.names[index], error, tell or error.errno in _NO_FILE)
    except ValueError as error:  # a name that no file can have
        return 0, _reason(error)
    if size == 0:
        return 0, EMPTY
    if not whole and (head, tail) == (b"\xff\xd8\xff", b"\xff\xd9"):
        return size, ""
    found = decoded(source, index, decoding, tell=tell)
    return size, found if isinstance(found, str) else ""


def _unread(name: str, error: OSError, tell: bool) -> str:
    """What is wrong with an image whose bytes are not to be had."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MISSING
    if tell:
        return _reason(error)
    raise StorageError(
        f"image {name} cannot be read ({first_line(error)}); see to its disk and permissions and run again"
    ) from error


def _reason(error: Exception) -> str:
    # Pillow names the buffer that it was given, which tells nobody anything.
    text = first_line(error)
    return "no image of a known format" if text.startswith("cannot identify image file") else text
