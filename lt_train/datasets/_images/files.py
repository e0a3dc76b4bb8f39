"""Images that stay in files: where their bytes are (`Source`), and a tensor-like view that decodes on access.

`ImageFiles` takes the place of a uint8 tensor `[N, 3, H, W]`. Shapes: N images, B a batch of them, H = W = `size`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from lt_train.core.errors import DataError, StorageError, first_line
from lt_train.core.imports import torch
from lt_train.datasets._images.decode import Decoder, Framing, chunks, map_in_threads, prefetch, thread_count

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "EMPTY",
    "MISSING",
    "Files",
    "ImageFiles",
    "Images",
    "Source",
    "error_reason",
    "images_below",
    "io_error_reason",
    "read_ahead",
    "shared_tensor",
    "try_decode",
]

MISSING, EMPTY = "missing", "0 bytes"
"""The reasons given for a file that does not exist and for one without content."""


class Source(Protocol):
    """Where the bytes of images are. `names[i]` is the name of image i, the same on every machine."""

    @property
    def names(self) -> Sequence[str]:
        """One name per image."""

    def read(self, index: int) -> bytes:
        """All bytes of an image; raises OSError."""

    def ends(self, index: int) -> tuple[int, bytes, bytes]:
        """Size of an image in bytes, its first three bytes and its last two; raises OSError."""


@dataclass(frozen=True)
class Files:
    """One file per image, named by its path below `root`."""

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


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Of files that are taken for images."""


def images_below(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Images, and other files, in a folder of `root` and its subfolders: paths relative to `root`, sorted.

    Hidden files are left out.
    """
    found = []
    for place, _, files in os.walk(root / folder):
        inside = os.path.relpath(place, root)
        start = "" if inside == "." else f"{inside}/".replace(os.sep, "/")
        found += [f"{start}{file}" for file in files if not file.startswith(".")]
    found.sort()
    images = [file for file in found if file.lower().endswith(SUFFIXES)]
    return images, [file for file in found if not file.lower().endswith(SUFFIXES)]


def try_decode(
    source: Source, index: int, decoder: Decoder, framing: Framing | None = None, *, report_io_errors: bool = False
) -> np.ndarray[Any, Any] | str:
    """Decode image `index` of `source`; returns uint8 `[3, H, W]`, or the reason why the image is unreadable.

    Args:
        source: where the bytes are.
        index: which image.
        decoder: how bytes become pixels.
        framing: which part of the image to use.
        report_io_errors: return an I/O error on an existing file as a reason instead of raising it.

    Raises:
        StorageError: the file exists but the operating system cannot read it, so the image itself may be intact.
    """
    try:
        content = source.read(index)
    except OSError as error:
        return io_error_reason(source.names[index], error, report_io_errors)
    if not content:
        return EMPTY
    try:
        return decoder(content, framing)
    except MemoryError:
        raise
    except Exception as error:  # a damaged image may raise anything
        return error_reason(error)


def io_error_reason(name: str, error: OSError, report_io_errors: bool) -> str:
    """The reason for an image whose file cannot be read; raises StorageError as described in `try_decode`."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MISSING
    if report_io_errors:
        return error_reason(error)
    raise StorageError(
        f"image {name} cannot be read ({first_line(error)}); check its disk and permissions, then run again"
    ) from error


def error_reason(error: Exception) -> str:
    """One line for an error of Pillow or the operating system."""
    # Pillow's own message names the buffer object, which does not help.
    text = first_line(error)
    return "not an image of a known format" if text.startswith("cannot identify image file") else text


class ImageFiles:
    """Images of a `Source`, indexed like a uint8 tensor `[N, 3, H, W]`; indexing decodes the selected images.

    `hold` decodes all of them once and keeps them in memory, which affects speed only.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        sizes: np.ndarray[Any, Any],
        rows: np.ndarray[Any, Any] | None = None,
        held: Tensor | None = None,
        unreadable: Mapping[int, str] | None = None,
    ) -> None:
        """Select images of a source.

        `sizes` are bytes per image of the source; `rows` are the indices of the selected images, None for all. `held`
        are these images decoded, and `unreadable` the reasons for those that could not be, by index into the source.
        """
        self.source, self.decoder, self._sizes, self._held = source, decoder, sizes, held
        self._unreadable = unreadable or {}
        self._rows = np.arange(len(source.names)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dtype(self) -> torch.dtype:
        """Always uint8."""
        return torch.uint8

    @property
    def shape(self) -> torch.Size:
        """`[N, 3, H, W]`."""
        return torch.Size((len(self), 3, self.decoder.size, self.decoder.size))

    @property
    def names(self) -> list[str]:
        """The name of each image."""
        return [self.source.names[row] for row in self._rows.tolist()]

    @property
    def in_memory(self) -> bool:
        """Whether the images are held decoded."""
        return self._held is not None

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` for a slice or indices, `[3, H, W]` for one index.

        Raises:
            DataError: an image cannot be read or decoded; the message names it.
        """
        if isinstance(index, int):
            return self[index : index + 1 or None][0]
        return self._require(index, None)

    def framed(self, index: slice | Tensor, framings: Sequence[Framing]) -> Tensor:
        """uint8 `[B, 3, H, W]`: the part of each full-size image that its framing selects, resized to the square.

        Held images are decoded from their files again, because only the centre crop is held.

        Raises:
            DataError: an image cannot be read or decoded; the message names it.
        """
        return self._require(index, framings)

    def _require(self, index: slice | Tensor, framings: Sequence[Framing] | None) -> Tensor:
        images, unreadable = self.try_read(index, framings)
        if unreadable:
            place = min(unreadable)
            raise self._undecodable(int(self._rows[_as_numpy(index)][place]), unreadable[place])
        return images

    def try_read(
        self, index: slice | Tensor, framings: Sequence[Framing] | None = None
    ) -> tuple[Tensor, dict[int, str]]:
        """Read a batch in which images may be missing, empty or damaged.

        Args:
            index: which images.
            framings: one per image, as in `framed`.

        Returns:
            uint8 `[B, 3, H, W]`, and the reason for each unreadable image by its place in the batch, which is black.

        Raises:
            StorageError: a file exists but the operating system cannot read it, so the image itself may be intact.
        """
        rows = self._rows[_as_numpy(index)]
        if self._held is not None and framings is None:
            places = np.flatnonzero(np.isin(rows, list(self._unreadable))).tolist() if self._unreadable else []
            return self._held[index], {place: self._unreadable[int(rows[place])] for place in places}
        images = torch.zeros((len(rows), *self.shape[1:]), dtype=torch.uint8)
        pixels, unreadable = images.numpy(), dict[int, str]()

        def fill(chunk: range) -> None:
            for place in chunk:
                image = try_decode(self.source, int(rows[place]), self.decoder, framings[place] if framings else None)
                if isinstance(image, str):
                    unreadable[place] = image
                else:
                    pixels[place] = image

        list(map_in_threads(fill, chunks(len(rows), max(len(rows) // (4 * thread_count()), 1))))
        return images, unreadable

    def take(self, indices: Tensor) -> ImageFiles:
        """The images at `indices`, int64 or bool, in that order; nothing is decoded."""
        held = None if self._held is None else self._held[indices]
        return ImageFiles(self.source, self.decoder, self._sizes, self._rows[indices.numpy()], held, self._unreadable)

    def hold(self) -> ImageFiles:
        """The same images decoded in memory; unreadable ones are reported when they are accessed."""
        held, unreadable = self.try_read(slice(None))
        by_row = {int(self._rows[place]): why for place, why in unreadable.items()}
        return ImageFiles(self.source, self.decoder, self._sizes, self._rows, held, by_row)

    def digest(self) -> str:
        """sha256 (hex) of names, sizes in bytes and decoding; equal for files and memory, on every machine.

        File contents are not hashed, because that would read hundreds of gigabytes before every sweep. An image that is
        replaced by another of exactly the same size under the same name is therefore not noticed. Modification times
        are not hashed either, because every copy changes them.
        """
        hasher = hashlib.sha256(json.dumps(asdict(self.decoder), sort_keys=True).encode())
        for row in self._rows.tolist():
            hasher.update(f"\n{self._sizes[row]} {self.source.names[row]}".encode(errors="surrogateescape"))
        return hasher.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the held tensor as an array, which Ray's processes on one machine then share."""
        return vars(self) | {"_held": None if self._held is None else self._held.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._held = None if state["_held"] is None else shared_tensor(state["_held"])

    def refuse_unreadable(self) -> None:
        """Refuse held images of which one could not be decoded. Images in files are not read.

        Raises:
            DataError: an image is unreadable; the message names it.
        """
        for row in self._rows.tolist() if self._unreadable else ():
            if row in self._unreadable:
                raise self._undecodable(row, self._unreadable[row])

    def _undecodable(self, row: int, why: str) -> DataError:
        return DataError(
            f"image {self.source.names[row]} cannot be decoded ({why}); fix or remove it. "
            "To find all unreadable images, run `lt-train data check`, or set check: whole in the dataset"
        )


def _as_numpy(index: slice | Tensor) -> slice | np.ndarray[Any, Any]:
    return index.numpy() if isinstance(index, torch.Tensor) else index


Images: TypeAlias = "Tensor | ImageFiles"
"""Images in memory or in files. Both have a `shape` and a length and support indexing."""


class Readable(Protocol):
    """Anything that returns uint8 `[B, C, H, W]` when indexed with a batch."""

    @property
    def in_memory(self) -> bool:
        """Whether indexing decodes nothing."""

    def __getitem__(self, batch: slice | Tensor, /) -> Tensor:
        """The images of a batch."""


def shared_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the memory of `array`, which may be read-only; the tensor must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def read_ahead(images: Tensor | Readable, batches: Iterable[slice | Tensor]) -> Iterator[Tensor]:
    """Yield `images[batch]` for every batch; the next batch of images in files is decoded while the caller works."""
    if isinstance(images, torch.Tensor) or images.in_memory:
        yield from (images[batch] for batch in batches)
    else:
        yield from prefetch(functools.partial(images.__getitem__, batch) for batch in batches)
