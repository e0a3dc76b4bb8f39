"""List files as the long-tailed benchmarks publish them: `relative/path label` a line, labels from 0.

`ListSpec` is the base of the kinds that read them, `PublishedSpec` of the sets whose counts and numbering are known:
lists of other counts are read, and a note says so loudly, since a miniature is legitimate; lists of another numbering
are refused, since a head belongs to its numbering. Labels are taken as they are. Knows nothing of decoding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lt_train.core.errors import DataError
from lt_train.core.registry import Spec
from lt_train.core.shorthand import Shorthand
from lt_train.core.validation import named
from lt_train.datasets._images.listing import Listed, Listing
from lt_train.datasets._images.sources import Files
from lt_train.datasets._images.spec import AUGMENTED, ImagesSpec
from lt_train.datasets.base import AnyAugmentation, Finding, ImageData, Labelled, ResizedCrop, blank
from lt_train.datasets.longtail import hold_out_fraction

__all__ = ["ListHashes", "ListSpec", "PublishedSpec", "read_list"]


_REMEDY = (
    "heads and checkpoints of the published numbering would not fit: get the published lists, or read these as "
    "image_list"
)

_SHA256 = r"^[0-9a-f]{64}$"


class ListHashes(Spec):
    """The sha256 that list files must have, as `sha256sum` prints them; null takes any file."""

    train: Annotated[str | None, Field(pattern=_SHA256, description="64 digits, of the list `train`")] = None
    val: Annotated[str | None, Field(pattern=_SHA256, description="64 digits, of the list `val`")] = None
    test: Annotated[str | None, Field(pattern=_SHA256, description="64 digits, of the list `test`")] = None


class ListSpec(ImagesSpec):
    """Base of the kinds that are read from list files."""

    root: Annotated[str, Field(description="the folder that the paths in the lists, and the lists, are relative to")]
    train: Annotated[str, Field(description="list file of the training images, relative to root")] = "train.txt"
    val: Annotated[
        str | None,
        Field(description="list file of the validation images; null holds val_fraction of the training images out"),
    ] = None
    test: Annotated[str, Field(description="list file of the test images")] = "test.txt"
    sha256: Annotated[
        ListHashes, Field(description="hashes that pin the lists, {train, val, test}; another file is refused")
    ] = ListHashes()

    def identity(self) -> dict[str, Any]:
        """The spec without where files and lists are, and what they must be."""
        apart = ("train", "val", "test", "sha256")
        return {name: value for name, value in super().identity().items() if name not in apart}

    def listing(self) -> Listing:
        """What the lists say.

        Raises:
            DataError: a list is missing, malformed or not the one it must be; file and line are named.
        """
        root = Path(self.root).expanduser()
        train = read_list(root, self.train, self.sha256.train)
        test = read_list(root, self.test, self.sha256.test)
        val = None if self.val is None else read_list(root, self.val, self.sha256.val)
        return Listing(train, val, test)


class PublishedSpec(ListSpec):
    """Base of the published sets: how many images each part of theirs has, how many classes, and their numbering.

    `class_folder` finds in a path the folder that stands for the class; published labels are in the order of those.
    Where there is none, classes that are numbered by their frequency, as in some repositories, are told by that.
    """

    published: ClassVar[Mapping[str, int]]
    classes: ClassVar[int]
    class_folder: ClassVar[str | None] = None

    resize: Annotated[
        int | None,
        Field(
            ge=1,
            validate_default=True,
            description="the shorter side is resized to this before the centre is cut out; null is size",
        ),
    ] = 256
    augmentation: Annotated[AnyAugmentation, Shorthand(("resized_crop",)), Field(description=AUGMENTED)] = ResizedCrop()

    def as_published(self) -> ImageData:
        """See `DatasetSpec.as_published`; images are dealt evenly to classes, which decides what a hold-out takes."""
        shape = (3, self.size, self.size)
        train, test = (blank(self.published[part], self.classes, shape) for part in ("train", "test"))
        counts = torch.bincount(train.labels)
        notes: tuple[str, ...] = ()
        if self.val is not None and "val" in self.published:
            val: Labelled[Tensor] | None = blank(self.published["val"], self.classes, shape)
        else:
            kept, held, notes = hold_out_fraction(train.labels, self.val_fraction)
            val = None if held is None else Labelled(train.inputs[held], train.labels[held])
            train = Labelled(train.inputs[kept], train.labels[kept])
        return ImageData(
            train, val, test, self.classes, counts, self.mean, self.std, augmentation=self.augmentation, notes=notes
        )

    def listing(self) -> Listing:
        """What the lists say, with a note where counts are not the published ones, a finding where labels are not."""
        listing = super().listing()
        wrong = self._renumbered(listing)
        return replace(listing, notes=tuple(self._notes(listing)), findings=() if wrong is None else (wrong,))

    def _renumbered(self, listing: Listing) -> Finding | None:
        """What shows that the labels are not the published ones; None where nothing does."""
        if self.class_folder is not None:
            wrong = _disorder(listing, re.compile(self.class_folder))
            what = "labels must ascend with the class folders, a label for each, as published"
            return Finding(f"{what}; {_REMEDY}", len(wrong), tuple(wrong[:20])) if wrong else None
        labels = listing.train.labels
        if not len(labels) or int(labels.min()) < 0 or int(labels.max()) + 1 != self.classes:
            return None
        counts = torch.bincount(labels)
        if (counts.diff() > 0).any() or counts[0] == counts[-1]:
            return None
        return Finding(
            f"labels must be the published ones, and classes are numbered by frequency ({int(counts[0])} training "
            f"images of class 0, fewer and fewer down to {int(counts[-1])} of class {self.classes - 1}); {_REMEDY}"
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
        return [f"THIS IS NOT THE PUBLISHED {self.kind}: {', '.join(differs)}; results compare with no published ones"]


def read_list(root: Path, name: str, sha256: str | None = None) -> Listed:
    """The images and labels of one list file; nothing is checked but that each line is a path and a whole number.

    Raises:
        DataError: there is no such file, it has another sha256 than is asked for, or a line is something else; file and
            line are named.
    """
    file = root / name
    try:
        content = file.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"list file {file} does not exist; correct root or the list's name") from None
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
    return Listed(Files(root, paths), torch.tensor(labels, dtype=torch.int64))


def _disorder(listing: Listing, class_folder: re.Pattern[str]) -> list[str]:
    """Class folders, of all parts, whose label is not above that of the folder before, or that have several labels."""
    labels: dict[str, set[int]] = {}
    for part in listing.parts().values():
        for name, label in zip(part.source.names, part.labels.tolist(), strict=True):
            if found := class_folder.search(name):
                labels.setdefault(found[1], set()).add(label)
    wrong, before, highest = [], "", -1
    for folder in sorted(labels, key=lambda folder: (len(folder), folder)):  # numbers as numbers
        least = min(labels[folder])
        if len(labels[folder]) > 1:
            wrong.append(f"{folder} has {named(sorted(labels[folder]), 3)}")
        elif least <= highest:
            wrong.append(f"{folder} has {least}, after {before} with {highest}")
        before, highest = folder, max(labels[folder])
    return wrong
