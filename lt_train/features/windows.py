"""Batches of a bank that does not fit in memory: windows of many batches are read at once, in file order.

Training visits rows in random order. From a file that is not in memory, each batch would wait for the disk to find its
rows one by one. Instead, the rows of many batches are fetched in ascending order, which a disk does at full speed, by a
thread that is one window ahead. Results do not depend on it. If the system has no `mincore`, or its answer is
unreliable (Linux, for files that the user neither owns nor may write), all rows are assumed to be in memory.

Shapes: N rows of D features.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["in_memory", "read_batches"]

WINDOW_BYTES = 2**26
"""Bytes fetched at once; every stack in training holds two windows. Large files use larger windows, up to
`LARGEST_BYTES`, so that a file is not read more than `PASSES` times per epoch."""

LARGEST_BYTES = 2**28

PASSES = 64


def read_batches(features: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows of each batch, `[n, D]`, of `features [N, D]`.

    Args:
        features: any dtype, may be read-only; on a device, or on the CPU in memory or memory-mapped.
        batches: int64 row numbers on the same device, n in each, of any shape.
    """
    if in_memory(features):
        for batch in batches:
            yield torch.index_select(features, 0, batch.flatten())
        return
    windows = list(_windows(features, batches))
    with ThreadPoolExecutor(1, "bank") as reader:
        pending = reader.submit(_fetch, features, windows[0])
        for following in [*windows[1:], None]:
            rows, places = pending.result()
            if following is not None:
                pending = reader.submit(_fetch, features, following)
            for place in places:
                yield torch.index_select(rows, 0, place)


def in_memory(features: Tensor) -> bool:
    """Whether every byte of `features` is in memory now, on the device or the machine."""
    if features.device.type != "cpu" or not features.is_contiguous() or not features.numel():
        return True
    mincore = getattr(_libc(), "mincore", None)
    if mincore is None:
        return True
    start = features.data_ptr()
    first = start - start % mmap.PAGESIZE
    length = start + features.numel() * features.element_size() - first
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    if mincore(ctypes.c_void_p(first), ctypes.c_size_t(length), pages):
        return True
    # The lowest bit is set if a page is in memory; the other bits are reserved.
    return bool(torch.frombuffer(pages, dtype=torch.uint8).bitwise_and(1).all())


def _windows(features: Tensor, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Batches in groups of about one window of rows."""
    row_bytes = features.shape[1] * features.element_size()
    most = max(WINDOW_BYTES, min(len(features) * row_bytes // PASSES, LARGEST_BYTES)) // row_bytes
    window: list[Tensor] = []
    held = 0
    for batch in batches:
        if window and held + batch.numel() > most:
            yield window
            window, held = [], 0
        window.append(batch.flatten())
        held += batch.numel()
    if window:
        yield window


def _fetch(features: Tensor, window: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The window's rows in file order, and for every batch the positions of its rows among them."""
    wanted, order = torch.cat(list(window)).sort()
    rows = torch.index_select(features, 0, wanted)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return rows, list(places.split([len(batch) for batch in window]))


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
