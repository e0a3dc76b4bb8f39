"""Base specs of the datasets whose images are files: shared fields, and the conversion of a `Listing` to `ImageData`.

A kind implements `listing`: which images there are, with which labels. This module does the rest.
Shapes: N images, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY
from lt_train.core.imports import torch
from lt_train.core.text import ProgressCallback, progress
from lt_train.core.validation import named
from lt_train.datasets._images.checks import (
    Listing,
    describe_unreadable,
    duplicate_findings,
    label_findings,
    note_untested,
    probe,
    unreadable_findings,
)
from lt_train.datasets._images.decode import Decoder
from lt_train.datasets._images.files import ImageFiles, Images
from lt_train.datasets.base import AnyAugmentation, DatasetSpec, Finding, ImageData, Inspection, Labelled, PadCrop
from lt_train.datasets.longtail import Cut, split_fraction

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AUGMENTATION", "CutImagesSpec", "ImagesSpec", "ValFraction"]

AUGMENTATION = (
    "augmentation in stage 1 and of the bank's views: {pad, flip}, or {kind: resized_crop, scale, ratio, flip}"
)

# The annotation of the field, for kinds that have another default.
ValFraction = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="share of each class's training images to hold out for validation, at least one image, if there is "
        "no val part",
    ),
]

_PROGRESS_FROM = 10_000
"""Number of images from which checking them takes long enough to show progress."""


class ImagesSpec(DatasetSpec):
    """Base of the kinds whose images are files: how images are decoded, checked and held."""

    size: Annotated[int, Field(ge=1, description="side of the square centre crop, in pixels")] = 224
    resize: Annotated[
        int | None,
        Field(ge=1, description="length of the shorter side before the centre crop, in pixels; null: size"),
    ] = None
    mean: Annotated[
        tuple[float, float, float],
        Field(description="mean of red, green and blue on the 0..1 scale; default: ImageNet's"),
    ] = (0.485, 0.456, 0.406)
    std: Annotated[
        tuple[float, float, float],
        Field(description="standard deviation of red, green and blue on the 0..1 scale, > 0; default: ImageNet's"),
    ] = (0.229, 0.224, 0.225)
    val_fraction: ValFraction = 0.2
    bad_images: Annotated[
        Literal["fail", "skip"],
        NOT_IDENTITY,
        Field(
            description="what to do if images are missing, empty or damaged: fail refuses the dataset, skip drops them "
            "and records a note; an I/O error on an existing file always ends the run"
        ),
    ] = "fail"
    check: Annotated[
        Literal["ends", "whole"],
        NOT_IDENTITY,
        Field(
            description="how images are checked when the dataset is loaded: ends accepts files with the first and "
            "last bytes of a JPEG without decoding them, and decodes all others; whole decodes every image"
        ),
    ] = "ends"
    in_memory: Annotated[
        int,
        NOT_IDENTITY,
        Field(
            ge=0,
            description="memory for decoded images, in bytes (3 * size * size per image). If all images fit, they are "
            "kept in memory, otherwise decoded on every access. Training images with resized_crop are always decoded "
            "on access. Affects speed only",
        ),
    ] = 2**30
    augmentation: Annotated[
        AnyAugmentation,
        Field(description=AUGMENTATION),
    ] = PadCrop(pad=16, flip=True)

    @field_validator("resize")
    @classmethod
    def _check_resize(cls, resize: int | None, others: ValidationInfo) -> int | None:
        size = others.data.get("size")
        if resize is not None and size is not None and resize < size:
            raise ValueError(f"must be at least size ({size}), got {resize}")
        return resize

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if min(std) <= 0:
            raise ValueError(f"must be above 0 for every channel, got {list(std)}")
        return std

    @abstractmethod
    def listing(self) -> Listing:
        """The images and labels, from folders or lists alone; no image is opened.

        Raises:
            DataError: folders or lists are missing or malformed.
        """

    def image_shape(self) -> tuple[int, int, int]:
        """`(3, size, size)`; no file is read."""
        return 3, self.size, self.size

    def decoder(self) -> Decoder:
        """Resizing and centre crop, by the fields `resize` and `size`."""
        return Decoder(self.size, self.resize or self.size)

    def tail(self) -> Cut | None:
        """The long tail to cut, or None to use the whole training set."""
        return None

    def load(self) -> ImageData:
        """RGB images, `size` pixels on a side.

        Raises:
            DataError: files are missing or malformed, labels have gaps, images are unreadable and `bad_images` is fail,
                or a class has too few images for the cut.
            StorageError: the operating system cannot read an existing image file, whatever `bad_images` is.
        """
        listing = self.listing()
        if findings := label_findings(listing):
            raise DataError("; ".join(map(str, findings)))
        whole = self.check == "whole"
        if sum(len(part.labels) for part in listing.parts().values()) < _PROGRESS_FROM:
            return self._data(listing, *self._checked(listing, whole))
        with progress("checking images", "image") as on_progress:
            return self._data(listing, *self._checked(listing, whole, on_progress))

    def inspect(self, on_progress: ProgressCallback) -> Inspection:
        """What the dataset holds and everything that is wrong with it; decodes every image."""
        try:
            listing = self.listing()
        except DataError as error:
            return Inspection.failed(error)
        images, unreadable = self._checked(listing, True, on_progress, report_io_errors=True)
        wrong_labels = label_findings(listing)
        findings = [*wrong_labels, *duplicate_findings(listing), *unreadable_findings(unreadable)]
        inspection = Inspection(
            counts=_counts(listing.train.labels),
            parts={name: len(part) for name, part in images.items()},
            classes=listing.classes,
            notes=listing.notes,
            findings=tuple(findings),
        )
        if wrong_labels:
            return inspection
        try:
            data = self.model_copy(update={"in_memory": 0})._data(listing, images, {})
        except DataError as error:
            return replace(inspection, findings=(*findings, Finding(str(error))))
        return replace(Inspection.of(data), classes=listing.classes, findings=tuple(findings))

    def _checked(
        self,
        listing: Listing,
        whole: bool,
        on_progress: ProgressCallback | None = None,
        *,
        report_io_errors: bool = False,
    ) -> tuple[dict[str, Labelled[ImageFiles]], dict[str, dict[str, str]]]:
        """The readable images of every part, and for every part the reason for each other image by name.

        Raises:
            StorageError: the operating system cannot read an existing file; not with `report_io_errors`.
        """
        decoder = self.decoder()
        parts = listing.parts()
        total, done = sum(len(part.labels) for part in parts.values()), 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if on_progress:
                on_progress(done, total, "")

        readable, unreadable = {}, {}
        for name, part in parts.items():
            sizes, wrong = probe(part.source, decoder, whole=whole, report_io_errors=report_io_errors, on_checked=count)
            usable = torch.ones(len(part.labels), dtype=torch.bool)
            usable[list(wrong)] = False
            images = ImageFiles(part.source, decoder, sizes)
            readable[name] = Labelled(images.take(usable), part.labels[usable])
            unreadable[name] = {part.source.names[index]: why for index, why in wrong.items()}
        return readable, unreadable

    def _data(
        self, listing: Listing, parts: dict[str, Labelled[ImageFiles]], unreadable: dict[str, dict[str, str]]
    ) -> ImageData:
        notes = list(listing.notes)
        if any(unreadable.values()):
            text = describe_unreadable(unreadable)
            if self.bad_images == "fail":
                raise DataError(f"{text}; fix or remove them, or drop them with bad_images: skip")
            notes.append(f"dropped (bad_images: skip): {text}")
        pool, val, test = parts["train"], parts.get("val"), parts["test"]
        num_classes = int(listing.train.labels.max()) + 1
        counts = torch.bincount(pool.labels, minlength=num_classes)
        if not counts.all():
            empty = torch.nonzero(counts == 0).flatten().tolist()
            raise DataError(f"every class needs a readable training image, and these have none: {named(empty)}")
        for name, part in parts.items():
            if not len(part):
                raise DataError(f"{name} must have readable images, got none")
        train: Labelled[Images] = pool
        held_out: Labelled[Images] | None = val
        more: tuple[str, ...] = ()
        cut = self.tail()
        if cut is not None:
            cut = cut if val is None else cut.model_copy(update={"val_per_class": 0})
            train, cut_val, counts, more = cut.split(pool, num_classes)
            held_out = val or cut_val
        elif val is None:
            train, held_out, more = split_fraction(pool, self.val_fraction)
        return self._held(
            ImageData(
                train=train,
                val=held_out,
                test=test,
                num_classes=num_classes,
                split_counts=counts,
                mean=self.mean,
                std=self.std,
                augmentation=self.augmentation,
                notes=(*notes, *more, *note_untested(test.labels, num_classes, listing.classes)),
                class_names=listing.classes,
            )
        )

    def _held(self, data: ImageData) -> ImageData:
        """The same data, held in memory if it fits; training images stay in files if the augmentation needs them."""
        from_files = self.augmentation.needs_files
        images = len(data.test) + (len(data.val) if data.val else 0) + (0 if from_files else len(data.train))
        if images * 3 * self.size**2 > self.in_memory:
            return data
        train = data.train if from_files else _in_memory(data.train)
        return replace(data, train=train, val=data.val and _in_memory(data.val), test=_in_memory(data.test))


class CutImagesSpec(ImagesSpec):
    """Base of the kinds that can also cut a long tail out of a balanced dataset."""

    cut: Annotated[
        Cut | None,
        Field(
            description="cut a long tail out of the training images, {n_max, imbalance_ratio}; null: use all of them"
        ),
    ] = None

    def tail(self) -> Cut | None:
        """The field `cut`."""
        return self.cut


def _in_memory(part: Labelled[Images]) -> Labelled[Images]:
    assert isinstance(part.inputs, ImageFiles)
    return Labelled(part.inputs.hold(), part.labels)


def _counts(labels: Tensor) -> Tensor | None:
    """int64 `[K]` images per class; None if the labels cannot be class numbers."""
    usable = len(labels) and labels.min() >= 0 and labels.max() < len(labels)
    return torch.bincount(labels) if usable else None
