"""Batches of a bank that memory does not hold: a window of many batches is read at once, in the order of the file.

Training visits rows in random order. Where the file is in memory, that costs nothing. Where it is not, each batch
would wait for a disk to find its rows one by one, and most of what comes with them is thrown away before its turn. So
the rows of many batches are fetched in ascending order, which a disk does at full speed, by a thread that is one window
ahead. Results do not depend on it. Knows the C library and one tensor. Where the system has no `mincore`, or does not
answer it truly (Linux, for files that this user neither owns nor may write), all is taken to be in memory.

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
"""Bytes fetched at once; two windows are held by every stack that is trained. A large file gets larger ones, so that it
is not passed over more than `PASSES` times an epoch, up to `LARGEST_BYTES`."""

LARGEST_BYTES = 2**28

PASSES = 64


def read_batches(features: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows of each batch, `[n, D]`, of `features [N, D]`.

    Args:
        features: of any dtype, read-only as it may be; on a device, or on the CPU, in memory or mapped.
        batches: int64 row numbers where the features are, n in each, of any shape.
    """
    if in_memory(features):
        for batch in batches:
            yield torch.index_select(features, 0, batch.flatten())
        return
    windows = list(_windows(features, batches))
    with ThreadPoolExecutor(1, "bank") as reader:
        coming = reader.submit(_fetch, features, windows[0])
        for following in [*windows[1:], None]:
            rows, places = coming.result()
            if following is not None:
                coming = reader.submit(_fetch, features, following)
            for place in places:
                yield torch.index_select(rows, 0, place)


def in_memory(features: Tensor) -> bool:
    """Whether every byte of `features` is in memory now, the device's or the machine's."""
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
    # The lowest bit says whether a page is in memory; what the others mean is the system's business.
    return bool(torch.frombuffer(pages, dtype=torch.uint8).bitwise_and(1).all())


def _windows(features: Tensor, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Batches in groups, each of about a window of rows."""
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
    """The window's rows as the file has them, and for every batch where its rows are among these."""
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
