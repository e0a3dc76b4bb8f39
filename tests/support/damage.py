"""Damage to files: a flipped bit, or a missing end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

__all__ = ["damaged_copies", "flip_bit", "flipped"]


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """`content` with one bit flipped."""
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def flip_bit(file: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of a file in place."""
    file.write_bytes(flipped(file.read_bytes(), place, bit))


def damaged_copies(content: bytes, flips: int, cuts: int = 4, seed: int = 0) -> Iterator[bytes]:
    """Copies of `content` with one random bit flipped, then truncated copies. The first and last bytes are included."""
    stream, last = random.Random(seed), len(content) - 1
    for place in [0, last, *(stream.randint(0, last) for _ in range(flips - 2))]:
        yield flipped(content, place, stream.randrange(8))
    for size in [0, last, *(stream.randint(0, last) for _ in range(cuts - 2))]:
        yield content[:size]
