"""Reading CIFAR's published pickles without trusting them, for `cifar10_lt` and `cifar100_lt`.

A pickle can run any code, so it is opened by an unpickler that can rebuild numpy arrays and nothing else, and then
checked against the published layout. An md5 that is not the published one is reported, not refused: small fixtures and
re-saved copies are legitimate.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lt_train.core.errors import DataError
from lt_train.datasets.base import ImageData, Labelled, blank
from lt_train.datasets.longtail import LongTailSpec

__all__ = ["CifarSpec", "read_pickle"]

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Torchvision(Protocol):
    """What is asked of `torchvision.datasets.CIFAR10`: its name, and to download when called so."""

    def __call__(self, root: str, *, download: bool) -> Any:
        """Fetch and check the published archive."""


class CifarSpec(LongTailSpec):
    """Base of both CIFARs: where the files are, which they are and how they become images."""

    folder: ClassVar[str]
    label_key: ClassVar[str]
    num_classes: ClassVar[int]
    train_md5: ClassVar[Mapping[str, str]]
    test_md5: ClassVar[Mapping[str, str]]

    root: Annotated[str, Field(description="the folder of the published pickles, or the folder that contains it")]
    download: Annotated[bool, Field(description="fetch the files into root with torchvision if they are missing")] = (
        False
    )

    def load(self) -> ImageData:
        """32 x 32 RGB images.

        Raises:
            DataError: files are missing, are no CIFAR pickles, or hold too few images for the cut.
        """
        root = Path(self.root).expanduser()
        if self.download and self._place(root) is None:
            self._download(root)
        place = self._place(root)
        if place is None:
            names = ", ".join((*self.train_md5, *self.test_md5))
            raise DataError(
                f"root {root} must be {self.folder} or contain it, with the files {names} in it, and is not; "
                "correct root or set download: true"
            )
        notes: list[str] = []
        train = self._read(place, self.train_md5, notes)
        test = self._read(place, self.test_md5, notes)
        return self.cut(train, test, self.num_classes, _MEAN, _STD, notes)

    def as_published(self) -> ImageData:
        """See `DatasetSpec.as_published`: 50000 training and 10000 test images, as many of every class."""
        train, test = (blank(count, self.num_classes, (3, 32, 32)) for count in (50_000, 10_000))
        return self.cut(train, test, self.num_classes, _MEAN, _STD)

    def _place(self, root: Path) -> Path | None:
        names = (*self.train_md5, *self.test_md5)
        for place in (root, root / self.folder):
            if all((place / name).is_file() for name in names):
                return place
        return None

    def _download(self, root: Path) -> None:
        from torchvision import datasets

        reader: Torchvision = datasets.CIFAR10 if self.num_classes == 10 else datasets.CIFAR100
        try:
            reader(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.folder} could not be downloaded into root {root} ({error}); "
                "check the connection, or unpack the published archive there yourself"
            ) from None

    def _read(self, place: Path, files: Mapping[str, str], notes: list[str]) -> Labelled[Tensor]:
        parts = []
        for name, published in files.items():
            content = (place / name).read_bytes()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if digest != published:
                notes.append(f"{place / name}: md5 {digest} is not the published {published}; read by its format")
            parts.append(read_pickle(content, place / name, self.label_key, self.num_classes))
        return Labelled(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))


def read_pickle(content: bytes, file: Path, label_key: str, num_classes: int) -> Labelled[Tensor]:
    """Images uint8 `[N, 3, 32, 32]` and labels of one published pickle.

    Raises:
        DataError: it is truncated, asks for anything but numpy arrays, or has another layout; `file` is named.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{file} was refused: {error}; get the published file again") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{file} cannot be read ({error!r}): it is truncated or altered; get it again") from None
    images = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get(label_key) if isinstance(batch, dict) else None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DataError(f"{file} must hold `data`, a uint8 array [N, 3072], as the published pickles do")
    if not isinstance(labels, list) or not all(isinstance(k, int) and 0 <= k < num_classes for k in labels):
        raise DataError(f"{file} must hold `{label_key}`, a list of classes from 0 to {num_classes - 1}")
    if len(labels) != len(images):
        raise DataError(f"{file} must hold as many labels as images, got {len(labels)} and {len(images)}")
    planes = torch.from_numpy(np.ascontiguousarray(images).reshape(-1, 3, 32, 32))
    return Labelled(planes, torch.tensor(labels, dtype=torch.int64))


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as Python 3 writes bytes in protocol 2, for that one encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Resolves what rebuilding a numpy array takes; every other global is refused by name."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The allowed global of that name."""
        found = self._allowed.get((module_name, global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, and only numpy arrays are allowed")
        return found
