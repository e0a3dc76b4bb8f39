"""What a dataset is to the rest: a frozen spec whose `load` returns images or features, split three ways.

A dataset kind is one file in this folder with one `DatasetSpec` subclass. It knows its own files and
`datasets.longtail`; it knows nothing of backbones, banks or methods. Shapes: N images, C channels, H x W pixels,
V views, A test views (image and mirror), D feature dimension, K classes.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor

from lt_train.core.errors import DataError
from lt_train.core.progress import Report
from lt_train.core.registry import KindSpec, Registry, Spec
from lt_train.datasets._images.files import ImageFiles, Images

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
    "blank",
]


_FLIP = "whether a mirrored image is of the same class, so may be mirrored"

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

        Over shape, dtype and bytes; images in files, and those that were read into memory from there, by
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


def blank(count: int, num_classes: int, shape: tuple[int, int, int]) -> Labelled[Tensor]:
    """Images that have a shape `(C, H, W)` and nothing else, dealt evenly to the classes; for `as_published`."""
    images = torch.empty(count, *shape, dtype=torch.uint8, device="meta")
    return Labelled(images, torch.arange(count, dtype=torch.int64) % num_classes)


class PadCrop(Spec):
    """Zero padding by `pad` pixels and a random crop, random mirror (paper, Appendix D): for small images.

    What is written without a kind is this one, and it is stored so: banks are addressed by it since before there was
    another. `flip` also says whether a mirrored image keeps its class; test-time flipping follows it unless told
    otherwise.
    """

    kind: Annotated[Literal["pad_crop"], Field(exclude=True)] = "pad_crop"
    pad: Annotated[int, Field(ge=0, description="pixels of zero padding before the random crop; 0 does not crop")]
    flip: Annotated[bool, Field(description=_FLIP)]


class ResizedCrop(Spec):
    """A random part of the image in its full size, resized to the square, random mirror: for images in files.

    Share and shape of the part are drawn as Szegedy et al. (2015) do and torchvision's RandomResizedCrop does. `flip`
    means what it means to `PadCrop`.
    """

    kind: Literal["resized_crop"] = "resized_crop"
    scale: Annotated[
        tuple[float, float],
        Field(description="least and largest share of the area, 0 < least <= largest <= 1"),
    ] = (0.08, 1.0)
    ratio: Annotated[
        tuple[float, float], Field(description="least and largest width over height, 0 < least <= largest")
    ] = (3 / 4, 4 / 3)
    flip: Annotated[bool, Field(description=_FLIP)] = True

    @field_validator("scale", "ratio")
    @classmethod
    def _ascends(cls, ends: tuple[float, float], field: ValidationInfo) -> tuple[float, float]:
        if not 0 < ends[0] <= ends[1]:
            raise ValueError(f"must be two numbers above 0 that ascend, got {list(ends)}")
        if field.field_name == "scale" and ends[1] > 1:
            raise ValueError(f"must be shares of the image, 1 at most, got {list(ends)}")
        return ends


def _kind_of(value: Any) -> str | None:
    """Which augmentation a document or an instance is; one that names none is `pad_crop`."""
    if isinstance(value, dict):
        return str(value.get("kind", "pad_crop"))
    return getattr(value, "kind", None)


Augmentation = PadCrop | ResizedCrop

AnyAugmentation = Annotated[
    Annotated[PadCrop, Tag("pad_crop")] | Annotated[ResizedCrop, Tag("resized_crop")], Discriminator(_kind_of)
]
"""Either, as a field of a dataset whose images are files."""


@dataclass(frozen=True)
class ImageData:
    """Images split three ways.

    Attributes:
        train, val, test: `Labelled` images, in memory or in files; `val` is None where the spec asks for none.
        num_classes: K.
        split_counts: int64 `[K]`, training images a class before any hold-out; defines many / medium / few.
        mean, std: per-channel statistics on the 0..1 scale, each of length C.
        augmentation: what stage 1 and the bank's views apply to training images.
        notes: what a user must know about how the data was cut; shown loudly wherever the data is used.
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

    def class_counts(self) -> Tensor:
        """int64 `[K]`: training images a class, as trained on."""
        return torch.bincount(self.train.labels, minlength=self.num_classes)


@dataclass(frozen=True)
class FeatureData:
    """Features that a user brings; no backbone is involved.

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
    """One thing that is wrong with a dataset: what, how often, and the first of what it is about, by name."""

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
    """What a dataset holds, as far as that can be told, and what is wrong with it.

    Attributes:
        counts: int64 `[K]`, training images a class before any hold-out; None where labels are no classes.
        parts: images (or features) of train, val and test.
        classes: names of the classes, empty where the files have none.
        notes: what a user must know about how the data was cut.
        findings: empty for data that is as it should be.
    """

    counts: Tensor | None
    parts: Mapping[str, int]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, data: ImageData | FeatureData) -> Inspection:
        """Of data that could be loaded."""
        parts = {"train": data.train, "val": data.val, "test": data.test}
        return cls(data.split_counts, {name: len(part) for name, part in parts.items() if part}, notes=data.notes)

    @classmethod
    def refused(cls, error: DataError) -> Inspection:
        """Of data that could not."""
        return cls(None, {}, findings=(Finding(str(error)),))


class DatasetSpec(KindSpec):
    """Base of every dataset kind: parameters as fields, `load` as the implementation."""

    @abstractmethod
    def load(self) -> ImageData | FeatureData:
        """Read, subset and split.

        Raises:
            DataError: files are missing or malformed, or the subset cannot be cut as asked.
        """

    def inspect(self, report: Report) -> Inspection:
        """What the data holds and what is wrong with it; kinds whose images are files look at every one."""
        try:
            return Inspection.of(self.load())
        except DataError as error:
            return Inspection.refused(error)

    def as_published(self) -> ImageData | None:
        """What `load` returns where the published files are, counted without them: shapes and labels, no images.

        Images are on torch's device `meta`. None for a kind of which only its files know what there is.
        """
        return None

    def identity(self) -> dict[str, Any]:
        """The spec as JSON without the fields that say where files are: what the data is, on any machine."""
        return self.model_dump(mode="json", exclude={"root", "path", "download"})


DATASETS = Registry("lt_train.datasets", DatasetSpec)  # type: ignore[type-abstract]
"""The datasets."""
