"""`fashion_mnist_lt`: FashionMNIST (Xiao et al. 2017), cut long-tailed, read from its idx files.

Reads the published files, compressed or not, from torchvision's folder or a flat one such as Debian's package
`dataset-fashion-mnist` installs. Recompressed files are legitimate, so the format is checked instead of an md5.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import torch
from lt_train.datasets.base import DATASETS, ImageData, Labelled, PadCrop, placeholder_images
from lt_train.datasets.longtail import (
    LargestClass,
    LongTailSpec,
    PadCropField,
    ValPerClass,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FashionMnistLT"]


_UBYTE = 0x08


@DATASETS.register
class FashionMnistLT(LongTailSpec):
    """FashionMNIST at n_max 500, where a ratio of 100 gives many, medium and few classes (6000 gives no few)."""

    kind: Literal["fashion_mnist_lt"] = "fashion_mnist_lt"
    root: Annotated[
        str,
        PATH,
        NOT_IDENTITY,
        Field(description="folder of the idx files (.gz or not), or torchvision's root that contains FashionMNIST/raw"),
    ] = "/usr/share/datasets/fashion-mnist"
    download: Annotated[bool, NOT_IDENTITY, Field(description="download missing files into root with torchvision")] = (
        False
    )
    n_max: Annotated[LargestClass, Field(le=6000)] = 500
    val_per_class: ValPerClass = 100
    augmentation: PadCropField = PadCrop(pad=1, flip=True)

    def load(self) -> ImageData:
        """28 x 28 grey images.

        Raises:
            DataError: files are missing, truncated or not idx files of the expected shape.
        """
        root = Path(self.root).expanduser()
        if self.download and _find(root) is None:
            _download(root)
        folder = _find(root)
        if folder is None:
            raise DataError(
                f"root {root} must contain the four FashionMNIST idx files (train-images-idx3-ubyte and so on, .gz or "
                "not), directly or in FashionMNIST/raw; correct root or set download: true"
            )
        train, test = _labelled(folder, "train"), _labelled(folder, "t10k")
        return self._cut(train, test)

    def as_published(self) -> ImageData:
        """See `DatasetSpec.as_published`: 6000 training and 1000 test images per class."""
        return self._cut(placeholder_images(60_000, 10, (1, 28, 28)), placeholder_images(10_000, 10, (1, 28, 28)))

    def _cut(self, train: Labelled[Tensor], test: Labelled[Tensor]) -> ImageData:
        return self.cut(train, test, num_classes=10, mean=(0.2860,), std=(0.3530,))


def _find(root: Path) -> Path | None:
    for folder in (root, root / "FashionMNIST" / "raw"):
        if _file(folder / "train-images-idx3-ubyte") is not None:
            return folder
    return None


def _file(plain: Path) -> Path | None:
    packed = plain.with_name(plain.name + ".gz")
    return plain if plain.is_file() else packed if packed.is_file() else None


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"FashionMNIST could not be downloaded into root {root} ({error}); "
            "check the connection, or place the idx files there yourself"
        ) from None


def _labelled(folder: Path, part: str) -> Labelled[Tensor]:
    images = _read_idx(folder / f"{part}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte", dimensions=1).long()
    if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max() > 9:
        raise DataError(
            f"{folder}: {part} must be 28 x 28 images with as many labels in 0 .. 9, got images "
            f"{list(images.shape)} and {len(labels)} labels up to {int(labels.max())}; download the files again"
        )
    return Labelled(images.unsqueeze(1), labels)


def _read_idx(plain: Path, dimensions: int) -> Tensor:
    """An idx file of unsigned bytes: two zeros, the type, the number of dimensions, sizes (big-endian int32), data."""
    file = _file(plain)
    if file is None:
        raise DataError(f"{plain} (.gz or not) is missing; all four FashionMNIST idx files must be in one folder")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read ({error}): truncated or altered; download it again") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, _UBYTE, dimensions]):
        raise DataError(
            f"{file} is not an idx file of unsigned bytes with {dimensions} dimension(s); download it again"
        )
    shape = np.frombuffer(content[4:header], dtype=">i4").tolist()
    if len(content) - header != int(np.prod(shape)):
        raise DataError(
            f"{file} is truncated or altered: {len(content) - header} bytes of data, but its header specifies "
            f"{shape}; download it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)
