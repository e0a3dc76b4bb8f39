"""Images from list files with lines `relative/path label`: `image_list` and three published benchmarks.

`imagenet_lt`, `inaturalist18` and `places_lt` check for the published counts and numbering. Lists with other counts
are read with a note, because a small subset is legitimate. Lists with another numbering are refused, because heads and
checkpoints belong to one numbering. Labels are never renumbered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import torch
from lt_train.core.registry import Spec
from lt_train.core.validation import named
from lt_train.datasets._images.checks import ListedImages, Listing
from lt_train.datasets._images.files import Files, Images
from lt_train.datasets._images.spec import AUGMENTATION, CutImagesSpec, ImagesSpec, ValFraction
from lt_train.datasets.base import (
    DATASETS,
    AnyAugmentation,
    Finding,
    ImageData,
    Labelled,
    ResizedCrop,
    placeholder_images,
)
from lt_train.datasets.longtail import split_fraction

__all__ = ["INaturalist18", "ImageList", "ImageNetLT", "PlacesLT"]

_REMEDY = (
    "heads and checkpoints of the published numbering would not fit: use the published lists, or read these with "
    "kind image_list"
)

_SHA256 = r"^[0-9a-f]{64}$"

# Annotations of fields, for kinds that have other defaults.
TrainList = Annotated[str, NOT_IDENTITY, Field(description="list file of the training images")]
ValList = Annotated[
    str | None,
    NOT_IDENTITY,
    Field(description="list file of the validation images; null: hold out val_fraction of the training images"),
]
TestList = Annotated[str, NOT_IDENTITY, Field(description="list file of the test images")]


class ListHashes(Spec):
    """The expected sha256 of each list file, as `sha256sum` prints it; null accepts any file."""

    train: Annotated[str | None, Field(pattern=_SHA256, description="64 hex digits, of the list `train`")] = None
    val: Annotated[str | None, Field(pattern=_SHA256, description="64 hex digits, of the list `val`")] = None
    test: Annotated[str | None, Field(pattern=_SHA256, description="64 hex digits, of the list `test`")] = None


class ListSpec(ImagesSpec):
    """Base of the kinds that read list files."""

    root: Annotated[
        str, PATH, NOT_IDENTITY, Field(description="folder that the lists, and the paths in them, are relative to")
    ]
    train: TrainList = "train.txt"
    val: ValList = None
    test: TestList = "test.txt"
    sha256: Annotated[
        ListHashes,
        NOT_IDENTITY,
        Field(description="expected hashes of the lists, {train, val, test}; files with other hashes are refused"),
    ] = ListHashes()

    def listing(self) -> Listing:
        """The images and labels in the lists.

        Raises:
            DataError: a list is missing, malformed or not the pinned one; the message names file and line.
        """
        root = Path(self.root).expanduser()
        train = read_list(root, self.train, self.sha256.train)
        test = read_list(root, self.test, self.sha256.test)
        val = None if self.val is None else read_list(root, self.val, self.sha256.val)
        return Listing(train, val, test)


@DATASETS.register
class ImageList(CutImagesSpec, ListSpec):
    """Your own list files: one line `relative/path label` per image, labels from 0 without gaps."""

    kind: Literal["image_list"] = "image_list"


class PublishedSpec(ListSpec):
    """Base of the published benchmarks.

    Attributes:
        published: images per part.
        classes: K.
        class_folder: pattern of the folder in a path that stands for the class; published labels ascend with these
            folders. Without one, labels that are ordered by class frequency are recognised as renumbered.
    """

    published: ClassVar[Mapping[str, int]]
    classes: ClassVar[int]
    class_folder: ClassVar[str | None] = None

    resize: Annotated[
        int | None,
        Field(
            ge=1,
            validate_default=True,
            description="length of the shorter side before the centre crop, in pixels; null: size",
        ),
    ] = 256
    augmentation: Annotated[AnyAugmentation, Field(description=AUGMENTATION)] = ResizedCrop()

    def as_published(self) -> ImageData:
        """See `DatasetSpec.as_published`; labels are balanced, which affects how many images a hold-out takes."""
        shape = (3, self.size, self.size)
        parts = {part: placeholder_images(count, self.classes, shape) for part, count in self.published.items()}
        train: Labelled[Images] = parts["train"]
        val: Labelled[Images] | None = parts.get("val") if self.val is not None else None
        notes: tuple[str, ...] = ()
        if val is None:
            train, val, notes = split_fraction(train, self.val_fraction)
        return ImageData(
            train=train,
            val=val,
            test=parts["test"],
            num_classes=self.classes,
            split_counts=torch.bincount(parts["train"].labels),
            mean=self.mean,
            std=self.std,
            augmentation=self.augmentation,
            notes=notes,
        )

    def listing(self) -> Listing:
        """The lists, with a note if counts are not the published ones and a finding if labels are not."""
        listing = super().listing()
        wrong = self._renumbered(listing)
        return replace(listing, notes=tuple(self._notes(listing)), findings=() if wrong is None else (wrong,))

    def _renumbered(self, listing: Listing) -> Finding | None:
        """Evidence that the labels are not the published ones; None if there is none."""
        if self.class_folder is not None:
            wrong = _misordered_folders(listing, re.compile(self.class_folder))
            what = "labels must ascend with the class folders, one label for each, as published"
            return Finding(f"{what}; {_REMEDY}", len(wrong), tuple(wrong[:20])) if wrong else None
        labels = listing.train.labels
        if not len(labels) or int(labels.min()) < 0 or int(labels.max()) + 1 != self.classes:
            return None
        counts = torch.bincount(labels)
        if (counts.diff() > 0).any() or counts[0] == counts[-1]:
            return None
        return Finding(
            f"labels must be the published ones, but classes are numbered by frequency (from {int(counts[0])} training "
            f"images of class 0 down to {int(counts[-1])} of class {self.classes - 1}); {_REMEDY}"
        )

    def _notes(self, listing: Listing) -> list[str]:
        """What differs from the published counts."""
        counts = {name: len(part.labels) for name, part in listing.parts().items() if name in self.published}
        published = {name: self.published[name] for name in counts}
        differs = [
            f"{name} {counts[name]} instead of {published[name]}" for name in counts if counts[name] != published[name]
        ]
        found = int(listing.train.labels.max()) + 1 if len(listing.train.labels) else 0
        if found != self.classes:
            differs.append(f"{found} classes instead of {self.classes}")
        if not differs:
            return []
        return [f"THIS IS NOT THE PUBLISHED {self.kind}: {', '.join(differs)}; do not compare with published results"]


@DATASETS.register
class ImageNetLT(PublishedSpec):
    """ImageNet-LT (Liu et al. 2019): 1000 classes, 115846 training images (1280 to 5 per class).

    20 validation and 50 test images per class.
    """

    published: ClassVar[Mapping[str, int]] = {"train": 115_846, "val": 20_000, "test": 50_000}
    classes: ClassVar[int] = 1000
    class_folder: ClassVar[str | None] = r"(?:^|/)(n\d{8})/"

    kind: Literal["imagenet_lt"] = "imagenet_lt"
    train: TrainList = "ImageNet_LT_train.txt"
    val: ValList = "ImageNet_LT_val.txt"
    test: TestList = "ImageNet_LT_test.txt"


@DATASETS.register
class INaturalist18(PublishedSpec):
    """iNaturalist 2018 (Van Horn et al. 2018): 8142 classes, 437513 training images.

    Its validation set, 3 images per class, serves as the test set.
    """

    published: ClassVar[Mapping[str, int]] = {"train": 437_513, "test": 24_426}
    classes: ClassVar[int] = 8142
    class_folder: ClassVar[str | None] = r"(?:^|/)(\d+)/[^/]+$"

    kind: Literal["inaturalist18"] = "inaturalist18"
    train: TrainList = "iNaturalist18_train.txt"
    test: TestList = "iNaturalist18_val.txt"
    val_fraction: Annotated[
        ValFraction,
        Field(
            description="share of each class's training images to hold out for validation, at least one image; 0 keeps "
            "the published training set without a validation set, so select on test, as the paper does",
        ),
    ] = 0.0


@DATASETS.register
class PlacesLT(PublishedSpec):
    """Places-LT (Liu et al. 2019): 365 classes, 62500 training images (4980 to 5 per class).

    20 validation and 100 test images per class.
    """

    published: ClassVar[Mapping[str, int]] = {"train": 62_500, "val": 7_300, "test": 36_500}
    classes: ClassVar[int] = 365

    kind: Literal["places_lt"] = "places_lt"
    train: TrainList = "Places_LT_train.txt"
    val: ValList = "Places_LT_val.txt"
    test: TestList = "Places_LT_test.txt"


def read_list(root: Path, name: str, sha256: str | None = None) -> ListedImages:
    """The images and labels of one list file. Labels are checked to be whole numbers; images are not opened.

    Raises:
        DataError: the file does not exist, has another sha256, or has a malformed line; the message names file and
            line.
    """
    file = root / name
    try:
        content = file.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"list file {file} does not exist; check root and the name of the list") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list file {file} cannot be read ({error})") from None
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"list file {file} must have the sha256 {sha256}, got {found}: it is another file")
    paths, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ") if "\t" not in line else line.strip().rpartition("\t")
        path = path.strip()
        if not path or not label.removeprefix("-").isdecimal() or len(label) > 9:
            raise DataError(f"{file}:{number}: a line must be a path, a space and a label from 0, got {line[:100]!r}")
        if path.startswith(("/", "~")):
            raise DataError(f"{file}:{number}: paths must be relative to root, got {path}")
        paths.append(path)
        labels.append(int(label))
    return ListedImages(Files(root, paths), torch.tensor(labels, dtype=torch.int64))


def _misordered_folders(listing: Listing, class_folder: re.Pattern[str]) -> list[str]:
    """Class folders, over all parts, with several labels or with a label not above that of the folder before."""
    labels: dict[str, set[int]] = {}
    for part in listing.parts().values():
        for name, label in zip(part.source.names, part.labels.tolist(), strict=True):
            if found := class_folder.search(name):
                labels.setdefault(found[1], set()).add(label)
    wrong, before, highest = [], "", -1
    for folder in sorted(labels, key=lambda folder: (len(folder), folder)):  # numbers in numerical order
        smallest = min(labels[folder])
        if len(labels[folder]) > 1:
            wrong.append(f"{folder} has {named(sorted(labels[folder]), 3)}")
        elif smallest <= highest:
            wrong.append(f"{folder} has {smallest}, after {before} with {highest}")
        before, highest = folder, max(labels[folder])
    return wrong
