"""`cifar10_lt` and `cifar100_lt`: CIFAR (Krizhevsky 2009), cut long-tailed from the published pickles.

A pickle can run any code, so the files are opened by an unpickler that rebuilds numpy arrays and nothing else, and then
checked against the published layout. An unknown md5 is reported, not refused: small fixtures and re-saved copies are
legitimate.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import torch
from lt_train.datasets.base import DATASETS, ImageData, Labelled, placeholder_images
from lt_train.datasets.longtail import LargestClass, LongTailSpec, ValPerClass

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cifar10LT", "Cifar100LT"]

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class CifarSpec(LongTailSpec):
    """Base of both CIFAR datasets.

    Attributes:
        folder: name of the published folder.
        label_key: key of the labels in the pickles.
        num_classes: K.
        train_md5, test_md5: published md5 of each file, by file name.
    """

    folder: ClassVar[str]
    label_key: ClassVar[str]
    num_classes: ClassVar[int]
    train_md5: ClassVar[Mapping[str, str]]
    test_md5: ClassVar[Mapping[str, str]]

    root: Annotated[
        str,
        PATH,
        NOT_IDENTITY,
        Field(description="the folder of the published pickles, or the folder that contains it"),
    ]
    download: Annotated[bool, NOT_IDENTITY, Field(description="download missing files into root with torchvision")] = (
        False
    )

    def load(self) -> ImageData:
        """32 x 32 RGB images.

        Raises:
            DataError: files are missing, are not CIFAR pickles, or hold too few images for the cut.
        """
        root = Path(self.root).expanduser()
        if self.download and self._find(root) is None:
            self._download(root)
        folder = self._find(root)
        if folder is None:
            names = ", ".join((*self.train_md5, *self.test_md5))
            raise DataError(
                f"root must be {self.folder} or contain it, with the files {names}; {root} does not; "
                "correct root or set download: true"
            )
        notes: list[str] = []
        train = self._read(folder, self.train_md5, notes)
        test = self._read(folder, self.test_md5, notes)
        return self.cut(train, test, self.num_classes, _MEAN, _STD, notes)

    def as_published(self) -> ImageData:
        """See `DatasetSpec.as_published`: 50000 training and 10000 test images, balanced over the classes."""
        train, test = (placeholder_images(count, self.num_classes, (3, 32, 32)) for count in (50_000, 10_000))
        return self.cut(train, test, self.num_classes, _MEAN, _STD)

    def _find(self, root: Path) -> Path | None:
        names = (*self.train_md5, *self.test_md5)
        for folder in (root, root / self.folder):
            if all((folder / name).is_file() for name in names):
                return folder
        return None

    def _download(self, root: Path) -> None:
        from torchvision import datasets

        reader: Any = datasets.CIFAR10 if self.num_classes == 10 else datasets.CIFAR100
        try:
            reader(str(root), download=True)  # checks the md5 of the archive
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.folder} could not be downloaded into root {root} ({error}); "
                "check the connection, or unpack the published archive there yourself"
            ) from None

    def _read(self, folder: Path, files: Mapping[str, str], notes: list[str]) -> Labelled[Tensor]:
        parts = []
        for name, published in files.items():
            content = (folder / name).read_bytes()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if digest != published:
                notes.append(
                    f"{folder / name}: md5 {digest} is not the published {published}; only its format is checked"
                )
            parts.append(read_pickle(content, folder / name, self.label_key, self.num_classes))
        return Labelled(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))


@DATASETS.register
class Cifar10LT(CifarSpec):
    """CIFAR10-LT as in LDAM: n_max 5000, the whole test set (1000 images per class)."""

    folder: ClassVar[str] = "cifar-10-batches-py"
    label_key: ClassVar[str] = "labels"
    num_classes: ClassVar[int] = 10
    train_md5: ClassVar[Mapping[str, str]] = {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    }
    test_md5: ClassVar[Mapping[str, str]] = {"test_batch": "40351d587109b95175f43aff81a1287e"}

    kind: Literal["cifar10_lt"] = "cifar10_lt"
    n_max: Annotated[LargestClass, Field(le=5000)] = 5000
    val_per_class: ValPerClass = 100


@DATASETS.register
class Cifar100LT(CifarSpec):
    """CIFAR100-LT, the paper's main dataset: n_max 500; 10847, 12608 and 19573 training images at IR 100, 50 and 10."""

    folder: ClassVar[str] = "cifar-100-python"
    label_key: ClassVar[str] = "fine_labels"
    num_classes: ClassVar[int] = 100
    train_md5: ClassVar[Mapping[str, str]] = {"train": "16019d7e3df5f24257cddd939b257f8d"}
    test_md5: ClassVar[Mapping[str, str]] = {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}

    kind: Literal["cifar100_lt"] = "cifar100_lt"
    n_max: Annotated[LargestClass, Field(le=500)] = 500


def read_pickle(content: bytes, file: Path, label_key: str, num_classes: int) -> Labelled[Tensor]:
    """Images uint8 `[N, 3, 32, 32]` and labels of one published pickle.

    Raises:
        DataError: the pickle is truncated, refers to anything but numpy arrays, or has another layout; `file` is named.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{file} was refused: {error}; download the published file again") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{file} cannot be read ({error!r}): truncated or altered; download it again") from None
    images = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get(label_key) if isinstance(batch, dict) else None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DataError(f"{file} must contain `data`, a uint8 array [N, 3072], as the published pickles do")
    if not isinstance(labels, list) or not all(isinstance(k, int) and 0 <= k < num_classes for k in labels):
        raise DataError(f"{file} must contain `{label_key}`, a list of classes from 0 to {num_classes - 1}")
    if len(labels) != len(images):
        raise DataError(f"{file} must contain as many labels as images, got {len(labels)} and {len(images)}")
    planes = torch.from_numpy(np.ascontiguousarray(images).reshape(-1, 3, 32, 32))
    return Labelled(planes, torch.tensor(labels, dtype=torch.int64))


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` for the one encoding with which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it uses the codec {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the globals that a pickled numpy array needs and refuses every other one by name."""

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
            raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}, but only numpy arrays are allowed")
        return found
