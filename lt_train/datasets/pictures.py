"""Pictures that stay in files: they stand where a uint8 tensor `[N, 3, H, W]` would, and are decoded as they are read.

Touch this to change how pictures are read or checked; how bytes become pixels is said by `decoding`, which pictures
there are by the kinds. Threads decode, since Pillow lets go of the interpreter meanwhile. Knows nothing of labels,
splits or specs. Shapes: N pictures, B a batch of them, H = W = `size` pixels.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lt_train.datasets.decoding import Decoding, Framing
from lt_train.errors import DataError, StorageError, first_line

__all__ = [
    "EMPTY",
    "MISSING",
    "Files",
    "PictureFiles",
    "Pictures",
    "Readable",
    "Source",
    "ahead",
    "decode_threads",
    "probe",
    "read_ahead",
    "shared",
]

ReadT = TypeVar("ReadT")

MISSING, EMPTY = "missing", "0 bytes"
"""What `probe` says of a picture that is not there, and of one that holds nothing."""

_NO_FILE = {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""What the machine says of a name under which there can be no picture; all else it says is of the machine."""

_AT_ONCE = 256
"""Pictures a thread checks before it reports."""


class Source(Protocol):
    """Where the bytes of pictures are: `names[i]` is what picture i is called, the same on every machine."""

    @property
    def names(self) -> Sequence[str]:
        """One a picture."""

    def read(self, index: int) -> bytes:
        """All of a picture; OSError where that cannot be."""

    def ends(self, index: int) -> tuple[int, bytes, bytes]:
        """How many bytes a picture has, its first three and its last two; OSError where that cannot be."""


@dataclass(frozen=True)
class Files:
    """Pictures that are a file each, named by their paths below `root`."""

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


class PictureFiles:
    """Pictures of a `Source` as a uint8 tensor `[N, 3, H, W]` would hold them; `[..]` decodes what it is asked for.

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

        Of pictures that are `held`, `unreadable` says why some are not, by index into the source.
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
        """What each picture is called."""
        return [self.source.names[row] for row in self._rows.tolist()]

    @property
    def in_memory(self) -> bool:
        """Whether the pictures are held decoded."""
        return self._held is not None

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` of a slice or of indices, `[3, H, W]` of one index.

        Raises:
            DataError: a picture cannot be read or decoded; it is named.
        """
        if isinstance(index, int):
            return self[index : index + 1 or None][0]
        return self._whole(index, None)

    def framed(self, index: slice | Tensor, framings: Sequence[Framing]) -> Tensor:
        """uint8 `[B, 3, H, W]`: of each picture what its framing cuts out, in its full size, resized to the square.

        Pictures that are held are decoded again all the same: what is held has lost the rest.

        Raises:
            DataError: a picture cannot be read or decoded; it is named.
        """
        return self._whole(index, framings)

    def _whole(self, index: slice | Tensor, framings: Sequence[Framing] | None) -> Tensor:
        pictures, unreadable = self.attempt(index, framings)
        if unreadable:
            place = min(unreadable)
            raise self._undecodable(int(self._rows[_plain(index)][place]), unreadable[place])
        return pictures

    def attempt(
        self, index: slice | Tensor, framings: Sequence[Framing] | None = None
    ) -> tuple[Tensor, dict[int, str]]:
        """uint8 `[B, 3, H, W]`, and why those places of it are black whose pictures are missing, empty or damaged.

        With `framings`, one a picture, as `framed` has them.

        Raises:
            StorageError: a picture is there and the machine cannot read it, which says nothing of the picture.
        """
        rows = self._rows[_plain(index)]
        if self._held is not None and framings is None:
            places = np.flatnonzero(np.isin(rows, list(self._unreadable))).tolist() if self._unreadable else []
            return self._held[index], {place: self._unreadable[int(rows[place])] for place in places}
        pictures = torch.zeros((len(rows), *self.shape[1:]), dtype=torch.uint8)
        filled, unreadable = pictures.numpy(), dict[int, str]()

        def fill(piece: range) -> None:
            for place in piece:
                picture = self._decode(int(rows[place]), framings[place] if framings else None)
                if isinstance(picture, str):
                    unreadable[place] = picture
                else:
                    filled[place] = picture

        list(_pool().map(fill, _pieces(len(rows), max(len(rows) // (4 * _threads()), 1))))
        return pictures, unreadable

    def take(self, indices: Tensor) -> PictureFiles:
        """The pictures at `indices`, int64 or bool, in that order; nothing is decoded."""
        held = None if self._held is None else self._held[indices]
        return PictureFiles(
            self.source, self.decoding, self._sizes, self._rows[indices.numpy()], held, self._unreadable
        )

    def hold(self) -> PictureFiles:
        """The same pictures, decoded in memory; those that cannot be are told of when they are asked for."""
        held, unreadable = self.attempt(slice(None))
        why = {int(self._rows[place]): reason for place, reason in unreadable.items()}
        return PictureFiles(self.source, self.decoding, self._sizes, self._rows, held, why)

    def digest(self) -> str:
        """sha256 (hex) over names, sizes in bytes and decoding: the same for files and memory, on every machine.

        Not over all bytes: that would read some hundred gigabytes before every sweep. So a picture replaced by another
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
        """Refuse pictures that are held where it is known of one that it cannot be read; of files nothing is known yet.

        Raises:
            DataError: it is named.
        """
        for row in self._rows.tolist() if self._unreadable else ():
            if row in self._unreadable:
                raise self._undecodable(row, self._unreadable[row])

    def _undecodable(self, row: int, why: str) -> DataError:
        """What to say of the picture at `row` of the source."""
        return DataError(
            f"picture {self.source.names[row]} cannot be decoded ({why}); mend or remove it. "
            "`lt-train data check` finds every such picture, and so does check: whole before anything is trained"
        )

    def _decode(self, row: int, framing: Framing | None = None) -> np.ndarray[Any, Any] | str:
        """The picture, or what is wrong with it."""
        try:
            content = self.source.read(row)
        except (FileNotFoundError, NotADirectoryError):
            return MISSING
        except OSError as error:
            raise _not_read(self.source.names[row], error) from error
        if not content:
            return EMPTY
        try:
            return self.decoding(content, framing)
        except MemoryError:
            raise
        except Exception as error:  # a damaged picture may raise anything
            return _reason(error)


def _plain(index: slice | Tensor) -> slice | np.ndarray[Any, Any]:
    return index.numpy() if isinstance(index, Tensor) else index


Pictures = Tensor | PictureFiles
"""Pictures in memory or in files: both have a `shape`, a length, and `[..]`."""


class Readable(Protocol):
    """What gives uint8 `[B, C, H, W]` for a batch of places; `in_memory` where that takes no time to speak of."""

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be decoded."""

    def __getitem__(self, batch: slice | Tensor, /) -> Tensor:
        """The pictures of a batch."""


def shared(pictures: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over an array that may be read-only, as what processes share is; it is only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pictures)


def read_ahead(pictures: Tensor | Readable, batches: Iterable[slice | Tensor]) -> Iterator[Tensor]:
    """`pictures[batch]` of every batch; of pictures in files, the next is decoded while the caller works on one."""
    if isinstance(pictures, Tensor) or pictures.in_memory:
        yield from (pictures[batch] for batch in batches)
    else:
        yield from ahead(functools.partial(pictures.__getitem__, batch) for batch in batches)


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


def probe(
    source: Source,
    decoding: Decoding,
    *,
    whole: bool,
    tell: bool = False,
    report: Callable[[int], None] | None = None,
) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
    """Look at every picture of `source`.

    Args:
        source: the pictures.
        decoding: what they must survive.
        whole: decode each. Otherwise a file that begins and ends as a JPEG does is believed to be one, which finds the
            missing, the empty, the truncated and what is no picture; other formats are decoded in any case.
        tell: go on after a picture that is there and that the machine cannot read, and tell of it like of the others.
        report: called with the number of pictures that were looked at since the last call.

    Returns:
        Bytes of every picture (0 where unknown), int64 `[N]`, and what is wrong with those that cannot be used.

    Raises:
        StorageError: the machine cannot read a picture, which says nothing of the picture; not with `tell`.
    """
    count = len(source.names)
    sizes, wrong = np.zeros(count, dtype=np.int64), dict[int, str]()

    def look(piece: range) -> int:
        for index in piece:
            sizes[index], reason = _look(source, index, decoding, whole, tell)
            if reason:
                wrong[index] = reason
        return len(piece)

    for looked_at in _pool().map(look, _pieces(count, _AT_ONCE)):
        if report:
            report(looked_at)
    return sizes, dict(sorted(wrong.items()))


def _look(source: Source, index: int, decoding: Decoding, whole: bool, tell: bool) -> tuple[int, str]:
    size = 0
    try:
        size, head, tail = source.ends(index)
        if size == 0:
            return 0, EMPTY
        if not whole and (head, tail) == (b"\xff\xd8\xff", b"\xff\xd9"):
            return size, ""
        content = source.read(index)
    except (FileNotFoundError, NotADirectoryError):
        return 0, MISSING
    except OSError as error:
        if tell or error.errno in _NO_FILE:
            return size, _reason(error)
        raise _not_read(source.names[index], error) from error
    except ValueError as error:  # a name that no file can have
        return size, _reason(error)
    try:
        decoding(content)
    except MemoryError:
        raise
    except Exception as error:  # a damaged picture may raise anything
        return size, _reason(error)
    return size, ""


def _not_read(name: str, error: OSError) -> StorageError:
    """Of a picture that is there and that the machine cannot read."""
    return StorageError(
        f"picture {name} cannot be read ({first_line(error)}); see to its disk and permissions and run again"
    )


def _reason(error: Exception) -> str:
    # Pillow names the buffer that it was given, which tells nobody anything.
    text = first_line(error)
    return "no picture of a known format" if text.startswith("cannot identify image file") else text


def _pieces(count: int, length: int) -> list[range]:
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def decode_threads(count: int) -> None:
    """Decode in `count` threads from now on: a process that shares its machine must not take every core."""
    global _wanted
    if count != _wanted:
        _wanted = count
        _pool.cache_clear()  # whoever is at work with it keeps it as long


_wanted: int | None = None


def _threads() -> int:
    if _wanted is not None:
        return _wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="decode")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
