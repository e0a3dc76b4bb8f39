"""`image_folder`: images in a folder a class, with a folder a part above them or without.

Takes `root/train/<class>/**`, `root/val/<class>/**`, `root/test/<class>/**`, or `root/<class>/**` alone, of which a
test set is then held out. Classes are numbered in the order of their names. Knows names of files only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from lt_train.core.errors import DataError
from lt_train.core.validation import named
from lt_train.datasets._images.listing import Listed, Listing
from lt_train.datasets._images.sources import Files
from lt_train.datasets._images.spec import CutImagesSpec
from lt_train.datasets.longtail import hold_out_fraction

__all__ = ["ImageFolder"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolder(CutImagesSpec):
    """A folder a class, under train, val and test or directly under root; any other file in them is told of."""

    kind: Literal["image_folder"] = "image_folder"
    root: Annotated[
        str, Field(description="folder with train/<class>/, test/<class>/ and maybe val/, or <class>/ alone")
    ]
    test_fraction: Annotated[
        float,
        Field(
            gt=0, lt=1, description="share of every class held out as test set, at least one, where there is no test/"
        ),
    ] = 0.2

    def listing(self) -> Listing:
        """What the folders hold, sorted by name.

        Raises:
            DataError: folders are missing, hold no class, or test or val has a class that train has not.
        """
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"root {root} must be a folder of images, and is not; correct root")
        divided = (root / "train").is_dir()
        classes = _classes(root / "train" if divided else root)
        if len(classes) < 2:
            raise DataError(
                f"{root / 'train' if divided else root} must hold a folder for each of at least two classes, "
                f"got {named(classes) or 'none'}"
            )
        notes = [
            f"classes are numbered in the order of their names: {named([f'{k} {c}' for k, c in enumerate(classes)])}"
        ]
        train, others = _listed(root, "train" if divided else "", classes)
        val = None
        if not divided:
            train, test = self._divided(train, notes)
        elif (root / "test").is_dir():
            test, more = _listed(root, "test", classes)
            others += more
            if (root / "val").is_dir():
                val, more = _listed(root, "val", classes)
                others += more
        elif (root / "val").is_dir():
            test, more = _listed(root, "val", classes)
            others += more
            notes.append(f"{root} has no test folder, so val is the test set")
        else:
            raise DataError(f"{root} has a train folder and must have a test or val folder beside it, and has neither")
        if others:
            notes.append(
                f"files that are no images by their names were passed over: {len(others)} ({named(others, 5)})"
            )
        return Listing(train, val, test, tuple(classes), tuple(notes))

    def _divided(self, whole: Listed, notes: list[str]) -> tuple[Listed, Listed]:
        """Training and test set of a tree that has no parts."""
        kept, held, _ = hold_out_fraction(whole.labels, self.test_fraction)
        held = torch.empty(0, dtype=torch.int64) if held is None else held
        notes.append(
            f"there are no train and test folders, so {len(held)} of {len(whole.labels)} images were held out as "
            f"test set (test_fraction {self.test_fraction:g} of every class, evenly spaced by name): a set of "
            "one's own, that compares with no published results"
        )
        return _chosen(whole, kept), _chosen(whole, held)


def _chosen(whole: Listed, indices: torch.Tensor) -> Listed:
    assert isinstance(whole.source, Files)
    names = [whole.source.names[index] for index in indices.tolist()]
    return Listed(Files(whole.source.root, names), whole.labels[indices])


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _listed(root: Path, part: str, classes: list[str]) -> tuple[Listed, list[str]]:
    """The images of one part, class by class and by name, and the files that are none."""
    unknown = sorted(set(_classes(root / part)) - set(classes))
    if unknown:
        raise DataError(f"{root / part} must have the classes of train, and has others: {named(unknown)}")
    names, labels, others = [], [], []
    for label, name in enumerate(classes):
        found = sorted(_below(root, os.path.join(part, name)))
        images = [file for file in found if file.lower().endswith(SUFFIXES)]
        others += [file for file in found if not file.lower().endswith(SUFFIXES)]
        names += images
        labels += [label] * len(images)
    return Listed(Files(root, names), torch.tensor(labels, dtype=torch.int64)), others


def _below(root: Path, folder: str) -> list[str]:
    """Paths relative to root of all files in a folder and those in it, hidden ones left out."""
    found = []
    for place, _, files in os.walk(root / folder):
        inside = os.path.relpath(place, root)
        found += [f"{inside}/{file}".replace(os.sep, "/") for file in files if not file.startswith(".")]
    return found
