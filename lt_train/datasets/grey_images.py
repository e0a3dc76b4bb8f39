"""Small grey images: scikit-learn's digits, and FashionMNIST (Xiao et al. 2017), both cut long-tailed.

FashionMNIST is read from the published idx files, compressed or not, from torchvision's folder or a flat one such as
Debian's package `dataset-fashion-mnist` installs. Recompressed files are legitimate, so the format is checked instead
of an md5.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from lt_train.core import seeding
from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import torch
from lt_train.datasets.base import ImageData, Labelled, PadCrop, placeholder_images
from lt_train.datasets.longtail import (
    ImbalanceRatio,
    LargestClass,
    LongTailSpec,
    PadCropField,
    ValPerClass,
    cut_longtail,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DigitsLT", "FashionMnistLT"]


_TEST_PER_CLASS = 50


class DigitsLT(LongTailSpec):
    """UCI optical recognition of handwritten digits; a balanced test set of 50 images per class is held out first."""

    kind: Literal["digits_lt"] = "digits_lt"
    n_max: Annotated[LargestClass, Field(le=124)] = 110
    imbalance_ratio: ImbalanceRatio = 20.0
    val_per_class: ValPerClass = 14
    augmentation: PadCropField = PadCrop(pad=1, flip=False)

    def load(self) -> ImageData:
        """8 x 8 grey images; the values 0 .. 16 are scaled to 0 .. 255."""
        # Imported here because scikit-learn takes longer to import than `lt-sweep validate` takes to run.
        from sklearn.datasets import load_digits

        digits = load_digits()
        # The file is ordered by writer. One fixed shuffle gives train, val and test the same distribution; without it
        # a validation set would not be representative of the test set.
        order = torch.randperm(len(digits.target), generator=seeding.generator("digits_lt order"))
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)[order]
        labels = torch.from_numpy(digits.target).long()[order]
        test, rest = cut_longtail(labels, [_TEST_PER_CLASS] * 10)
        return self.cut(
            Labelled(images[rest], labels[rest]),
            Labelled(images[test], labels[test]),
            num_classes=10,
            mean=(0.3053,),
            std=(0.3760,),
        )


_UBYTE = 0x08


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
