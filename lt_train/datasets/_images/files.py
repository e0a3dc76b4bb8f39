"""Images that stay in files: they stand where a uint8 tensor `[N, 3, H, W]` would, and are decoded as they are read.

Where their bytes are is said by `sources`, how these become pixels by `decoding`, which images there are by the
kinds. Knows nothing of labels, splits or specs. Shapes: N images, B a batch of them, H = W = `size` pixels.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lt_train.core.errors import DataError
from lt_train.datasets._images.decode_pool import ahead, in_threads, pieces, threads
from lt_train.datasets._images.decoding import Decoding, Framing
from lt_train.datasets._images.sources import Source, decoded

__all__ = ["ImageFiles", "Images", "Readable", "read_ahead", "shared"]


class ImageFiles:
    """Images of a `Source` as a uint8 tensor `[N, 3, H, W]` would hold them; `[..]` decodes what it is asked for.

    `hold` decodes all of them once and keeps them in memory, which changes speed and nothing else.
    """

    def __init__(
        self,
        source: Source,
        decoding: Decoding,
        sizes: np.ndarray[Any, Any],
        rows: np.ndarray[Any, Any] | None = None,
        held: Tensor | None = None,
        unreadable: Mapping[int, str] | None = None,
    ) -> None:
        """`sizes` are bytes by index into the source; `rows` are those indices that belong here, None for all.

        Of images that are `held`, `unreadable` says why some are not, by index into the source.
        """
        self.source, self.decoding, self._sizes, self._held = source, decoding, sizes, held
        self._unreadable = unreadable or {}
        self._rows = np.arange(len(source.names)) if rows is None else rows

    dtype = torch.uint8

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        """`[N, 3, H, W]`."""
        return torch.Size((len(self), 3, self.decoding.size, self.decoding.size))

    @property
    def names(self) -> list[str]:
        """What each image is called."""
        return [self.source.names[row] for row in self._rows.tolist()]

    @property
    def in_memory(self) -> bool:
        """Whether the images are held decoded."""
        return self._held is not None

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` of a slice or of indices, `[3, H, W]` of one index.

        Raises:
            DataError: an image cannot be read or decoded; it is named.
        """
        if isinstance(index, int):
            return self[index : index + 1 or None][0]
        return self._whole(index, None)

    def framed(self, index: slice | Tensor, framings: Sequence[Framing]) -> Tensor:
        """uint8 `[B, 3, H, W]`: of each image what its framing cuts out, in its full size, resized to the square.

        Images that are held are decoded again all the same: what is held has lost the rest.

        Raises:
            DataError: an image cannot be read or decoded; it is named.
        """
        return self._whole(index, framings)

    def _whole(self, index: slice | Tensor, framings: Sequence[Framing] | None) -> Tensor:
        images, unreadable = self.attempt(index, framings)
        if unreadable:
            place = min(unreadable)
            raise self._undecodable(int(self._rows[_plain(index)][place]), unreadable[place])
        return images

    def attempt(
        self, index: slice | Tensor, framings: Sequence[Framing] | None = None
    ) -> tuple[Tensor, dict[int, str]]:
        """uint8 `[B, 3, H, W]`, and why those places of it are black whose images are missing, empty or damaged.

        With `framings`, one an image, as `framed` has them.

        Raises:
            StorageError: an image is there and the machine cannot read it, which says nothing of the image.
        """
        rows = self._rows[_plain(index)]
        if self._held is not None and framings is None:
            places = np.flatnonzero(np.isin(rows, list(self._unreadable))).tolist() if self._unreadable else []
            return self._held[index], {place: self._unreadable[int(rows[place])] for place in places}
        images = torch.zeros((len(rows), *self.shape[1:]), dtype=torch.uint8)
        filled, unreadable = images.numpy(), dict[int, str]()

        def fill(piece: range) -> None:
            for place in piece:
                image = decoded(self.source, int(rows[place]), self.decoding, framings[place] if framings else None)
                if isinstance(image, str):
                    unreadable[place] = image
                else:
                    filled[place] = image

        list(in_threads(fill, pieces(len(rows), max(len(rows) // (4 * threads()), 1))))
        return images, unreadable

    def take(self, indices: Tensor) -> ImageFiles:
        """The images at `indices`, int64 or bool, in that order; nothing is decoded."""
        held = None if self._held is None else self._held[indices]
        return ImageFiles(self.source, self.decoding, self._sizes, self._rows[indices.numpy()], held, self._unreadable)

    def hold(self) -> ImageFiles:
        """The same images, decoded in memory; those that cannot be are told of when they are asked for."""
        held, unreadable = self.attempt(slice(None))
        why = {int(self._rows[place]): reason for place, reason in unreadable.items()}
        return ImageFiles(self.source, self.decoding, self._sizes, self._rows, held, why)

    def digest(self) -> str:
        """sha256 (hex) over names, sizes in bytes and decoding: the same for files and memory, on every machine.

        Not over all bytes: that would read some hundred gigabytes before every sweep. So an image replaced by another
        of the very same size under the same name is not noticed. Times of change are left out, as every copy has new
        ones.
        """
        hasher = hashlib.sha256(json.dumps(asdict(self.decoding), sort_keys=True).encode())
        for row in self._rows.tolist():
            hasher.update(f"\n{self._sizes[row]} {self.source.names[row]}".encode(errors="surrogateescape"))
        return hasher.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """What travels: an array for the tensor, which Ray's processes of one machine then share."""
        return vars(self) | {"_held": None if self._held is None else self._held.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._held = None if state["_held"] is None else shared(state["_held"])

    def refuse_unreadable(self) -> None:
        """Refuse images that are held where it is known of one that it cannot be read; of files nothing is known yet.

        Raises:
            DataError: it is named.
        """
        for row in self._rows.tolist() if self._unreadable else ():
            if row in self._unreadable:
                raise self._undecodable(row, self._unreadable[row])

    def _undecodable(self, row: int, why: str) -> DataError:
        """What to say of the image at `row` of the source."""
        return DataError(
            f"image {self.source.names[row]} cannot be decoded ({why}); mend or remove it. "
            "`lt-train data check` finds every such image, and so does check: whole before anything is trained"
        )


def _plain(index: slice | Tensor) -> slice | np.ndarray[Any, Any]:
    return index.numpy() if isinstance(index, Tensor) else index


Images = Tensor | ImageFiles
"""Images in memory or in files: both have a `shape`, a length, and `[..]`."""


class Readable(Protocol):
    """What gives uint8 `[B, C, H, W]` for a batch of places; `in_memory` where that takes no time to speak of."""

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be decoded."""

    def __getitem__(self, batch: slice | Tensor, /) -> Tensor:
        """The images of a batch."""


def shared(images: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over an array that may be read-only, as what processes share is; it is only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


def read_ahead(images: Tensor | Readable, batches: Iterable[slice | Tensor]) -> Iterator[Tensor]:
    """`images[batch]` of every batch; of images in files, the next is decoded while the caller works on one."""
    if isinstance(images, Tensor) or images.in_memory:
        yield from (images[batch] for batch in batches)
    else:
        yield from ahead(functools.partial(images.__getitem__, batch) for batch in batches)
