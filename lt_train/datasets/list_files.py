"""List files as the long-tailed benchmarks publish them: `relative/path label` a line, labels from 0.

`ListSpec` is the base of the kinds that read them, `PublishedSpec` of the sets whose counts are known: lists of other
counts are read, and a note says so loudly, since a miniature is legitimate. Labels are taken as they are and never
renumbered: a head belongs to its numbering. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lt_train.datasets.base import Labelled, PictureData, blank
from lt_train.datasets.listing import Listed, Listing
from lt_train.datasets.longtail import hold_out_fraction
from lt_train.datasets.picture_sets import PicturesSpec
from lt_train.datasets.pictures import Files
from lt_train.errors import DataError

__all__ = ["ListSpec", "PublishedSpec", "read_list"]


class ListSpec(PicturesSpec):
    """Base of the kinds that are read from list files."""

    root: Annotated[str, Field(description="the folder that the paths in the lists, and the lists, are relative to")]
    train: Annotated[str, Field(description="list file of the training pictures, relative to root")] = "train.txt"
    val: Annotated[
        str | None,
        Field(description="list file of the validation pictures; null holds val_fraction of the training pictures out"),
    ] = None
    test: Annotated[str, Field(description="list file of the test pictures")] = "test.txt"

    def identity(self) -> dict[str, Any]:
        """The spec without where files and lists are."""
        return {name: value for name, value in super().identity().items() if name not in ("train", "val", "test")}

    def listing(self) -> Listing:
        """What the lists say.

        Raises:
            DataError: a list is missing or malformed; file and line are named.
        """
        root = Path(self.root).expanduser()
        train, test = read_list(root, self.train), read_list(root, self.test)
        val = None if self.val is None else read_list(root, self.val)
        return Listing(train, val, test)


class PublishedSpec(ListSpec):
    """Base of the published sets: how many pictures each part of theirs has, and how many classes there are."""

    published: ClassVar[Mapping[str, int]]
    classes: ClassVar[int]

    resize: Annotated[
        int | None,
        Field(
            ge=1,
            validate_default=True,
            description="the shorter side is resized to this before the centre is cut out; null is size",
        ),
    ] = 256

    def as_published(self) -> PictureData:
        """See `DatasetSpec.as_published`; pictures are dealt evenly to classes, which decides what a hold-out takes."""
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
        return PictureData(
            train, val, test, self.classes, counts, self.mean, self.std, augmentation=self.augmentation, notes=notes
        )

    def listing(self) -> Listing:
        """What the lists say, with a note where that is not what was published."""
        listing = super().listing()
        return replace(listing, notes=tuple(self._notes(listing)))

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


def read_list(root: Path, name: str) -> Listed:
    """The pictures and labels of one list file; nothing is checked but that each line is a path and a whole number.

    Raises:
        DataError: there is no such file, or a line is something else; file and line are named.
    """
    file = root / name
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"list file {file} does not exist; correct root or the list's name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list file {file} cannot be read ({error})") from None
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
