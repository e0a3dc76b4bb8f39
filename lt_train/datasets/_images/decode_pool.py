"""The threads that read and decode images: one pool a process, and one thread that reads ahead.

Pillow lets go of the interpreter while it decodes. Knows nothing of images.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead", "decode_threads", "in_threads", "pieces", "threads"]

ReadT = TypeVar("ReadT")


def ahead(reads: Iterable[Callable[[], ReadT]]) -> Iterator[ReadT]:
    """What every call returns, in order; the next is made in a thread while the caller works on one's result."""
    coming: deque[Future[ReadT]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as reader:
        for read in reads:
            coming.append(reader.submit(read))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def in_threads(work: Callable[[range], ReadT], ranges: Iterable[range]) -> Iterator[ReadT]:
    """What `work` makes of every range, in order; all of them are under way at once."""
    return _pool().map(work, ranges)


def pieces(count: int, length: int) -> list[range]:
    """`count` places in ranges of `length`, the last of them shorter."""
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def threads() -> int:
    """How many decode at once."""
    if _wanted is not None:
        return _wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_threads(count: int) -> None:
    """Decode in `count` threads from now on: a process that shares its machine must not take every core."""
    global _wanted
    if count != _wanted:
        _wanted = count
        _pool.cache_clear()  # whoever is at work with it keeps it as long


_wanted: int | None = None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), thread_name_prefix="decode")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
