"""`image_folder`: one folder of images per class.

Reads `root/train/<class>/**`, `root/val/<class>/**` and `root/test/<class>/**`, or `root/<class>/**` alone, of which a
test set is then held out. Classes are numbered in alphabetical order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import torch
from lt_train.core.validation import named
from lt_train.datasets._images.checks import ListedImages, Listing
from lt_train.datasets._images.files import Files, images_below
from lt_train.datasets._images.spec import CutImagesSpec
from lt_train.datasets.base import DATASETS
from lt_train.datasets.longtail import hold_out_fraction

__all__ = ["ImageFolder"]


@DATASETS.register
class ImageFolder(CutImagesSpec):
    """One folder per class, under train, val and test or directly under root; other files are ignored with a note."""

    kind: Literal["image_folder"] = "image_folder"
    root: Annotated[
        str,
        PATH,
        NOT_IDENTITY,
        Field(description="folder with train/<class>/, test/<class>/ and optionally val/, or with <class>/ alone"),
    ]
    test_fraction: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="share of each class to hold out as the test set, at least one image, if there is no test/",
        ),
    ] = 0.2

    def listing(self) -> Listing:
        """The images in the folders, sorted by name.

        Raises:
            DataError: folders are missing or empty, or test or val has a class that train does not have.
        """
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"root must be a folder of images, but {root} is not a folder; correct root")
        divided = (root / "train").is_dir()
        classes = _classes(root / "train" if divided else root)
        if len(classes) < 2:
            raise DataError(
                f"{root / 'train' if divided else root} must contain one folder per class for at least two classes, "
                f"got {named(classes) or 'none'}"
            )
        shown = [os.fsencode(name).decode(errors="replace") for name in classes]  # a folder may have any bytes
        notes = [f"classes are numbered in alphabetical order: {named([f'{k} {c}' for k, c in enumerate(shown)])}"]
        train, ignored = _listed(root, "train" if divided else "", classes)
        val = None
        if not divided:
            train, test = self._hold_out_test(train, notes)
        elif (root / "test").is_dir():
            test, more = _listed(root, "test", classes)
            ignored += more
            if (root / "val").is_dir():
                val, more = _listed(root, "val", classes)
                ignored += more
        elif (root / "val").is_dir():
            test, more = _listed(root, "val", classes)
            ignored += more
            notes.append(f"{root} has no test folder, so val is the test set")
        else:
            raise DataError(f"{root} has a train folder, but neither test nor val beside it; add one of them")
        if ignored:
            notes.append(f"files without an image suffix were ignored: {len(ignored)} ({named(ignored, 5)})")
        return Listing(train, val, test, tuple(shown), tuple(notes))

    def _hold_out_test(self, whole: ListedImages, notes: list[str]) -> tuple[ListedImages, ListedImages]:
        """Training and test set of a tree without parts."""
        kept, held, _ = hold_out_fraction(whole.labels, self.test_fraction)
        held = torch.empty(0, dtype=torch.int64) if held is None else held
        notes.append(
            f"there are no train and test folders, so {len(held)} of {len(whole.labels)} images were held out as the "
            f"test set (test_fraction {self.test_fraction:g} of every class, evenly spaced by name): do not compare "
            "with published results"
        )
        return _chosen(whole, kept), _chosen(whole, held)


def _chosen(whole: ListedImages, indices: torch.Tensor) -> ListedImages:
    assert isinstance(whole.source, Files)
    names = [whole.source.names[index] for index in indices.tolist()]
    return ListedImages(Files(whole.source.root, names), whole.labels[indices])


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _listed(root: Path, part: str, classes: list[str]) -> tuple[ListedImages, list[str]]:
    """The images of one part, by class and name, and the names of the other files."""
    unknown = sorted(set(_classes(root / part)) - set(classes))
    if unknown:
        raise DataError(f"{root / part} must have the classes of train, but has others: {named(unknown)}")
    names, labels, others = [], [], []
    for label, name in enumerate(classes):
        images, ignored = images_below(root, os.path.join(part, name))
        others += ignored
        names += images
        labels += [label] * len(images)
    return ListedImages(Files(root, names), torch.tensor(labels, dtype=torch.int64)), others
