"""Sets of images in files: the fields that they share, what is wrong with their files, and the way to `ImageData`.

A kind says which images there are with which labels (`listing`); everything after that is here. Knows `images` and
`longtail`; nothing of folders, list files or parquet. Shapes: N images, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor

from lt_train.core.errors import DataError
from lt_train.core.progress import Report, progress
from lt_train.core.shorthand import Shorthand
from lt_train.core.validation import named
from lt_train.datasets._images.decoding import Decoding
from lt_train.datasets._images.files import ImageFiles, Images
from lt_train.datasets._images.listing import Listing, bad_findings, label_findings, name_findings, told, untested
from lt_train.datasets._images.sources import probe
from lt_train.datasets.base import (
    AnyAugmentation,
    DatasetSpec,
    Finding,
    ImageData,
    Inspection,
    Labelled,
    PadCrop,
    ResizedCrop,
)
from lt_train.datasets.longtail import Cut, hold_out_fraction, take

__all__ = ["AUGMENTED", "CutImagesSpec", "ImagesSpec"]

AUGMENTED = "what stage 1 and the views of a bank apply: {pad, flip}, or {kind: resized_crop, scale, ratio, flip}"

_SHOWN_FROM = 10_000
"""Images from which on looking at them takes long enough to show how far it is."""


class ImagesSpec(DatasetSpec):
    """Base of the kinds whose images are files: how they are decoded, checked and held."""

    size: Annotated[int, Field(ge=1, description="side of the square of an image that is used, in pixels")] = 224
    resize: Annotated[
        int | None,
        Field(ge=1, description="the shorter side is resized to this before the centre is cut out; null is size"),
    ] = None
    mean: Annotated[
        tuple[float, float, float], Field(description="of red, green and blue on the 0..1 scale; ImageNet's by default")
    ] = (0.485, 0.456, 0.406)
    std: Annotated[
        tuple[float, float, float], Field(description="of red, green and blue on the 0..1 scale; ImageNet's by default")
    ] = (0.229, 0.224, 0.225)
    val_fraction: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of every class's training images held out, at least one, where there is no val part",
        ),
    ] = 0.2
    bad_images: Annotated[
        Literal["fail", "skip"],
        Field(
            description="of missing, empty or damaged images: refuse the set, or leave them out and say so; one that "
            "the machine cannot read ends the run"
        ),
    ] = "fail"
    check: Annotated[
        Literal["ends", "whole"],
        Field(
            description="how images are looked at first: ends believes a file that begins and ends as a JPEG does "
            "and decodes other formats, whole decodes every one"
        ),
    ] = "ends"
    in_memory: Annotated[
        int,
        Field(
            ge=0,
            description="bytes: images that take no more than this decoded (3 * size * size each) are held in "
            "memory, others are decoded as they are used, as training images of a resized_crop always are; changes "
            "speed only",
        ),
    ] = 2**30
    augmentation: Annotated[
        AnyAugmentation,
        Shorthand(("resized_crop",)),
        Field(description=AUGMENTED),
    ] = PadCrop(pad=16, flip=True)

    @field_validator("resize")
    @classmethod
    def _holds_the_square(cls, resize: int | None, others: ValidationInfo) -> int | None:
        size = others.data.get("size")
        if resize is not None and size is not None and resize < size:
            raise ValueError(f"must be at least size ({size}), got {resize}")
        return resize

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if min(std) <= 0:
            raise ValueError(f"must be above 0 for every channel, got {list(std)}")
        return std

    @abstractmethod
    def listing(self) -> Listing:
        """Which images there are, from folders or lists alone.

        Raises:
            DataError: folders or lists are missing or malformed.
        """

    def tail(self) -> Cut | None:
        """The long tail to cut, None for a set that is used as it is."""
        return None

    def identity(self) -> dict[str, Any]:
        """The spec without where files are and how they are checked and held: none of it changes what the data is."""
        return {
            name: value
            for name, value in super().identity().items()
            if name not in ("bad_images", "check", "in_memory")
        }

    def load(self) -> ImageData:
        """RGB images, `size` pixels on a side.

        Raises:
            DataError: files are missing or malformed, labels have gaps, images are bad and `bad_images` is fail, or
                the tail cannot be cut.
            StorageError: the machine cannot read an image that is there, whatever `bad_images` says.
        """
        listing = self.listing()
        _refuse(label_findings(listing))
        count = sum(len(part.labels) for part in listing.parts().values())
        if count < _SHOWN_FROM:
            return self._data(listing, *self._looked_at(listing, self.check == "whole"))
        with progress("looking at images", "image") as report:
            return self._data(listing, *self._looked_at(listing, self.check == "whole", report))

    def inspect(self, report: Report) -> Inspection:
        """What the set holds and everything that is wrong with it; decodes every image."""
        try:
            listing = self.listing()
        except DataError as error:
            return Inspection.refused(error)
        images, bad = self._looked_at(listing, True, report, tell=True)
        findings = [*label_findings(listing), *name_findings(listing), *bad_findings(bad)]
        found = Inspection(
            counts=_counts(listing.train.labels),
            parts={name: len(part) for name, part in images.items()},
            classes=listing.classes,
            notes=listing.notes,
            findings=tuple(findings),
        )
        if label_findings(listing):
            return found
        try:
            data = self.model_copy(update={"in_memory": 0})._data(listing, images, {})
        except DataError as error:
            return replace(found, findings=(*findings, Finding(str(error))))
        return replace(Inspection.of(data), classes=listing.classes, findings=tuple(findings))

    def _looked_at(
        self, listing: Listing, whole: bool, report: Report | None = None, *, tell: bool = False
    ) -> tuple[dict[str, Labelled[ImageFiles]], dict[str, dict[str, str]]]:
        """The images of every part that can be used, and by part what is wrong with the others, by name.

        Raises:
            StorageError: the machine cannot read an image that is there; with `tell` that is wrong with it.
        """
        decoding = Decoding(self.size, self.resize or self.size)
        parts = listing.parts()
        total, done = sum(len(part.labels) for part in parts.values()), 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if report:
                report(done, total, "")

        good, bad = {}, {}
        for name, part in parts.items():
            sizes, wrong = probe(part.source, decoding, whole=whole, tell=tell, report=count)
            usable = torch.ones(len(part.labels), dtype=torch.bool)
            usable[list(wrong)] = False
            images = ImageFiles(part.source, decoding, sizes)
            good[name] = Labelled(images.take(usable), part.labels[usable])
            bad[name] = {part.source.names[index]: reason for index, reason in wrong.items()}
        return good, bad

    def _data(
        self, listing: Listing, parts: dict[str, Labelled[ImageFiles]], bad: dict[str, dict[str, str]]
    ) -> ImageData:
        notes = list(listing.notes)
        if any(bad.values()):
            text = told(bad)
            if self.bad_images == "fail":
                raise DataError(f"{text}; mend or remove them, or leave them out with bad_images: skip")
            notes.append(f"left out (bad_images: skip): {text}")
        pool, val, test = parts["train"], parts.get("val"), parts["test"]
        num_classes = int(listing.train.labels.max()) + 1
        counts = torch.bincount(pool.labels, minlength=num_classes)
        if not counts.all():
            empty = torch.nonzero(counts == 0).flatten().tolist()
            raise DataError(f"every class needs a training image that can be read, and these have none: {named(empty)}")
        for name, part in parts.items():
            if not len(part):
                raise DataError(f"{name} must have images that can be read, and has none")
        train: Labelled[Images] = pool
        cut = self.tail()
        held: Labelled[Images] | None = val
        if cut is not None:
            cut = cut if val is None else cut.model_copy(update={"val_per_class": 0})
            train, cut_off, counts, more = cut(pool, num_classes)
            held = val or cut_off
        elif val is None:
            kept, out, more = hold_out_fraction(pool.labels, self.val_fraction)
            train, held = take(pool, kept), None if out is None else take(pool, out)
        else:
            more = ()
        return self._held(
            ImageData(
                train=train,
                val=held,
                test=test,
                num_classes=num_classes,
                split_counts=counts,
                mean=self.mean,
                std=self.std,
                augmentation=self.augmentation,
                notes=(*notes, *more, *untested(test.labels, num_classes, listing.classes)),
            )
        )

    def _held(self, data: ImageData) -> ImageData:
        """The same, in memory where it fits; a part of an image is cut out of its file, so those stay there."""
        resized = isinstance(self.augmentation, ResizedCrop)
        images = len(data.test) + (len(data.val) if data.val else 0) + (0 if resized else len(data.train))
        if images * 3 * self.size**2 > self.in_memory:
            return data
        train = data.train if resized else _in_memory(data.train)
        return replace(data, train=train, val=data.val and _in_memory(data.val), test=_in_memory(data.test))


class CutImagesSpec(ImagesSpec):
    """Base of the kinds that may also cut a long tail out of a balanced set."""

    cut: Annotated[
        Cut | None,
        Field(description="cut a long tail out of the training images, {n_max, imbalance_ratio}; null takes them all"),
    ] = None

    def tail(self) -> Cut | None:
        """The `cut` that was asked for."""
        return self.cut


def _in_memory(part: Labelled[Images]) -> Labelled[Images]:
    assert isinstance(part.inputs, ImageFiles)
    return Labelled(part.inputs.hold(), part.labels)


def _counts(labels: Tensor) -> Tensor | None:
    """int64 `[K]` images a class; None for labels that are no classes."""
    usable = len(labels) and labels.min() >= 0 and labels.max() < len(labels)
    return torch.bincount(labels) if usable else None


def _refuse(findings: list[Finding]) -> None:
    if findings:
        raise DataError("; ".join(map(str, findings)))
