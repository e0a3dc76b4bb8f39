"""The interface of datasets: `DatasetSpec`, whose `load` returns images or features in train, val and test parts.

A dataset kind is a subclass of `DatasetSpec` in this folder. Shapes: N images, C channels, H x W pixels, V views,
A test views (image and mirror), D feature dimension, K classes.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY, marked_fields
from lt_train.core.imports import torch
from lt_train.core.registry import KindSpec, Registry
from lt_train.core.text import ProgressCallback
from lt_train.datasets._images.decode import Decoder
from lt_train.datasets._images.files import ImageFiles, Images
from lt_train.datasets._images.transform import AnyAugmentation, Augmentation, PadCrop, ResizedCrop

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DATASETS",
    "AnyAugmentation",
    "Augmentation",
    "DatasetSpec",
    "FeatureData",
    "Finding",
    "ImageData",
    "Inspection",
    "Labelled",
    "PadCrop",
    "ResizedCrop",
    "placeholder_images",
]

InputsT = TypeVar("InputsT", bound=Images, covariant=True)


@dataclass(frozen=True)
class Labelled(Generic[InputsT]):
    """Inputs, uint8 `[N, C, H, W]` (images) or float32 `[.., N, D]` (features), with their labels, int64 `[N]`.

    Images may stay in files (`ImageFiles`).
    """

    inputs: InputsT
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def digest(self) -> str:
        """sha256 (hex): the content address of these inputs and labels.

        Covers shape, dtype and bytes. Images in files, and those read into memory from files, contribute
        `ImageFiles.digest`.
        """
        hasher = hashlib.sha256()
        for tensor in (self.inputs, self.labels):
            if isinstance(tensor, ImageFiles):
                hasher.update(tensor.digest().encode())
                continue
            hasher.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            hasher.update(tensor.contiguous().view(-1).numpy().data)
        return hasher.hexdigest()


def placeholder_images(count: int, num_classes: int, shape: tuple[int, int, int]) -> Labelled[Tensor]:
    """Images `(C, H, W)` without content, on device `meta`, with labels 0 .. K-1 in turn; for `as_published`."""
    images = torch.empty(count, *shape, dtype=torch.uint8, device="meta")
    return Labelled(images, torch.arange(count, dtype=torch.int64) % num_classes)


@dataclass(frozen=True)
class ImageData:
    """A dataset of images.

    Attributes:
        train, val, test: `Labelled` images, in memory or in files; `val` is None if the spec asks for none.
        num_classes: K.
        split_counts: int64 `[K]`, training images per class before any hold-out; defines many / medium / few.
        mean, std: per-channel statistics on the 0..1 scale, each of length C.
        augmentation: applied to training images in stage 1 and in the bank's views.
        notes: facts about the cut that a user must know; shown wherever the data is used.
        class_names: names of the classes, by number; empty if unknown.
    """

    train: Labelled[Images]
    val: Labelled[Images] | None
    test: Labelled[Images]
    num_classes: int
    split_counts: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def parts(self) -> dict[str, Labelled[Images]]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def class_counts(self) -> Tensor:
        """int64 `[K]`: training images per class, after any hold-out."""
        return torch.bincount(self.train.labels, minlength=self.num_classes)


@dataclass(frozen=True)
class FeatureData:
    """A dataset of features computed elsewhere; no backbone is involved.

    `train.inputs` is `[V, N, D]`, `val.inputs` and `test.inputs` are `[A, N, D]`, all float32. `head` is the stage-1
    classifier as `(weight [K, D], bias [K])`, or None.
    """

    train: Labelled[Tensor]
    val: Labelled[Tensor] | None
    test: Labelled[Tensor]
    num_classes: int
    split_counts: Tensor
    head: tuple[Tensor, Tensor] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One defect of a dataset: what is wrong, how often, and the names of the first items affected."""

    what: str
    count: int = 1
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.names:
            return self.what
        more = self.count - len(self.names)
        return f"{self.what}: {self.count} ({', '.join(self.names)}{f' and {more} more' if more > 0 else ''})"


@dataclass(frozen=True)
class Inspection:
    """What a dataset holds, and what is wrong with it.

    Attributes:
        counts: int64 `[K]`, training images per class before any hold-out; None if labels are not class numbers.
        parts: number of images (or features) in train, val and test.
        classes: names of the classes; empty if unknown.
        notes: facts about the cut that a user must know.
        findings: the defects; empty for a valid dataset.
    """

    counts: Tensor | None
    parts: Mapping[str, int]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, data: ImageData | FeatureData) -> Inspection:
        """The inspection of data that was loaded without an error."""
        parts = {name: len(part) for name in ("train", "val", "test") if (part := getattr(data, name))}
        return cls(data.split_counts, parts, notes=data.notes)

    @classmethod
    def failed(cls, error: DataError) -> Inspection:
        """The inspection of data that could not be loaded."""
        return cls(None, {}, findings=(Finding(str(error)),))


class DatasetSpec(KindSpec):
    """Base of every dataset kind: parameters are fields, `load` is the implementation.

    Fields that do not change what the data is, such as the location of files, are declared `NOT_IDENTITY`.
    """

    @abstractmethod
    def load(self) -> ImageData | FeatureData:
        """Read, subset and split the data.

        Raises:
            DataError: files are missing or malformed, or have too few images for the cut.
        """

    def inspect(self, on_progress: ProgressCallback) -> Inspection:
        """What the data holds and what is wrong with it; kinds whose images are files decode every image."""
        try:
            return Inspection.of(self.load())
        except DataError as error:
            return Inspection.failed(error)

    def as_published(self) -> ImageData | None:
        """What `load` would return for the published files, without reading them: shapes and labels only.

        Images are on torch's device `meta`. None for a kind whose content is known only from its files.
        """
        return None

    def image_shape(self) -> tuple[int, int, int] | None:
        """`(C, H, W)` of its images; None for features. Some kinds read their data to find out.

        Raises:
            DataError: see `load`.
        """
        data = self.as_published() or self.load()
        if not isinstance(data, ImageData):
            return None
        _, channels, height, width = data.train.inputs.shape
        return channels, height, width

    def decoder(self) -> Decoder:
        """What turns the file of an image into an RGB image of the size of its own.

        Raises:
            DataError: it has no images, or they are not square; or see `load`.
        """
        shape = self.image_shape()
        if shape is None or shape[1] != shape[2]:
            got = "features" if shape is None else f"images of {shape[1]} x {shape[2]}"
            raise DataError(f"image files become square images, but dataset {self.kind} has {got}")
        return Decoder(shape[1], shape[1])

    def identity(self) -> dict[str, Any]:
        """The spec as JSON without the fields declared `NOT_IDENTITY`: what the data is, on any machine."""
        return self.model_dump(mode="json", exclude={*marked_fields(type(self), NOT_IDENTITY)})


DATASETS = Registry("datasets", DatasetSpec, "lt_train.datasets")  # type: ignore[type-abstract]
"""The plugin group of datasets."""
