"""Decoding one image to pixels with Pillow, and the thread pool that decodes many.

Pillow releases the interpreter lock while it decodes, so threads are enough. Shapes: H = W = `size` pixels.
"""

from __future__ import annotations

import functools
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

__all__ = ["Box", "Decoder", "Framing", "chunks", "map_in_threads", "prefetch", "set_decode_threads", "thread_count"]

T = TypeVar("T")

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""The formats that Pillow may detect. Others are disabled: an EPS file, for example, is a program that Pillow runs."""


class Box(NamedTuple):
    """A part of an image, in its own pixels."""

    left: int
    top: int
    width: int
    height: int


Framing = Callable[[int, int], Box]
"""Maps an image's width and height to the part of it to use."""


@dataclass(frozen=True)
class Decoder:
    """Decodes bytes to RGB, resizes the shorter side and crops the centre, as torchvision does with Pillow.

    Grey, palette and CMYK images become RGB. Of 16 bits per channel the upper eight are used; 32 bits are refused.
    Alpha is dropped; of an animation the first frame is used. An EXIF rotation is not applied, as in common readers.

    Attributes:
        size: side of the square crop, in pixels.
        resize: length of the shorter side before the crop, bilinear and antialiased; at least `size`.
    """

    size: int
    resize: int

    def __call__(self, content: bytes, framing: Framing | None = None) -> np.ndarray[Any, Any]:
        """Decode one image to uint8 `[3, H, W]`.

        With a framing, the part of the whole image that it selects is resized to the square instead.

        Raises:
            Exception: whatever Pillow raises for content that is not an image or is damaged.
        """
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            file.load()
            image = _rgb(file)
        image = self._centre(image) if framing is None else self._part(image, framing(*image.size))
        return np.asarray(image).transpose(2, 0, 1)

    def _part(self, image: Image.Image, box: Box) -> Image.Image:
        # Two steps, as in torchvision's resized_crop: resize(box=...) would blend in pixels from outside the box.
        cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        return cut.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def _centre(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short, long = sorted(image.size)
        if short != self.resize:
            other = int(self.resize * long / short)
            width, height = (self.resize, other) if width <= height else (other, self.resize)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        if (width, height) != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # a PGM, whose white is 65535
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # the value of white is unknown, and `convert` would clip
        raise ValueError("pixels of 32 bits have no defined range; save the image with 8 or 16 bits per channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # otherwise Pillow warns and confuses transparent colours
    return image.convert("RGB")


def prefetch(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the result of every call, in order, running the next call in a thread while the caller uses the last."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
        for read in reads:
            pending.append(reader.submit(read))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def map_in_threads(work: Callable[[range], T], ranges: Iterable[range]) -> Iterator[T]:
    """Yield `work(range)` for every range, in order; the decode pool runs them concurrently."""
    return _pool().map(work, ranges)


def chunks(count: int, length: int) -> list[range]:
    """Split `range(count)` into ranges of `length`; the last one may be shorter."""
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def thread_count() -> int:
    """Number of threads in the decode pool: what `set_decode_threads` set, else the cores of this process."""
    if _threads is not None:
        return _threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_decode_threads(count: int) -> None:
    """Use `count` decode threads from now on, so that processes that share a machine do not each take every core."""
    global _threads
    if count != _threads:
        _threads = count
        _pool.cache_clear()  # calls in progress keep the pool they started with


_threads: int | None = None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="decode")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
