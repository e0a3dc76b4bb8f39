"""Which images a set has, with which labels, and what is wrong with that in words.

What a kind of images in files gives to `image_sets`. Nothing here opens a file. Shapes: N images, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lt_train.core.validation import named
from lt_train.datasets._images.sources import EMPTY, MISSING, Source
from lt_train.datasets.base import Finding

__all__ = ["Listed", "Listing", "bad_findings", "label_findings", "name_findings", "told", "untested"]


@dataclass(frozen=True)
class Listed:
    """The images of one part, none of which has been looked at, and their labels, int64 `[N]`."""

    source: Source
    labels: Tensor


@dataclass(frozen=True)
class Listing:
    """All parts of a set, with the names of its classes (none where the files have none) and what a user must know.

    `val` is None where a validation set is to be held out of the training set; `findings` is what the kind itself finds
    wrong with its labels.
    """

    train: Listed
    val: Listed | None
    test: Listed
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def parts(self) -> dict[str, Listed]:
        """The parts that there are, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


def label_findings(listing: Listing) -> list[Finding]:
    """Labels outside 0 .. K-1, K from the training set, classes without an image in it, and what the kind found."""
    findings = list(listing.findings)
    labels = listing.train.labels
    num_classes = max(int(labels.max()) + 1 if len(labels) else 0, len(listing.classes))
    for part, listed in listing.parts().items():
        if not len(listed.labels):
            findings.append(Finding(f"{part} must have images, and has none"))
            continue
        outside = torch.nonzero((listed.labels < 0) | (listed.labels >= num_classes)).flatten().tolist()
        if outside:
            findings.append(
                Finding(
                    f"{part} labels must be in 0 .. {num_classes - 1}, the classes of the training set",
                    len(outside),
                    tuple(f"{listed.source.names[i]} has {int(listed.labels[i])}" for i in outside[:20]),
                )
            )
    if len(labels) and (gaps := list(_gaps(labels.unique().tolist(), num_classes))):
        names = [f"{k} ({listing.classes[k]})" if k < len(listing.classes) else str(k) for k in gaps]
        findings.append(
            Finding(
                f"labels must be 0 .. {num_classes - 1} without gaps, and there are classes without training images",
                num_classes - len(labels[labels >= 0].unique()),
                tuple(names),
            )
        )
    return findings


def _gaps(present: list[int], num_classes: int, most: int = 20) -> Iterator[int]:
    """The first labels of 0 .. K-1 that are not among `present`, which is sorted; K may be absurd."""
    expected = 0
    for label in [*(label for label in present if label >= 0), num_classes]:
        for missing in range(expected, label):
            if most == 0:
                return
            most -= 1
            yield missing
        expected = label + 1


def name_findings(listing: Listing) -> list[Finding]:
    """Images that one part has twice, and training images that another part has too."""
    findings = []
    names = {name: Counter(part.source.names) for name, part in listing.parts().items()}
    for part, counter in names.items():
        twice = [name for name, count in counter.items() if count > 1]
        if twice:
            findings.append(Finding(f"{part} has images more than once", len(twice), tuple(twice[:20])))
        both = [name for name in names["train"] if name in counter] if part != "train" else []
        if both:
            findings.append(Finding(f"train and {part} share images", len(both), tuple(both[:20])))
    return findings


def bad_findings(bad: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Images that cannot be used, by what is wrong; `bad` holds a reason by name and by part."""
    findings = []
    for what, reasons in (("missing", MISSING), ("empty (0 bytes)", EMPTY), ("unreadable", None)):
        for part, wrong in bad.items():
            names = [
                name if reasons else f"{name} ({reason})"
                for name, reason in wrong.items()
                if (reason == reasons if reasons else reason not in (MISSING, EMPTY))
            ]
            if names:
                findings.append(Finding(f"{part} images are {what}", len(names), tuple(names[:20])))
    return findings


def told(bad: Mapping[str, Mapping[str, str]]) -> str:
    """How many images are bad, in which parts, and the first twenty by name."""
    counts = ", ".join(f"{len(wrong)} in {part}" for part, wrong in bad.items() if wrong)
    names = [f"{name} ({reason})" for wrong in bad.values() for name, reason in wrong.items()]
    return f"images that cannot be used: {len(names)} ({counts}): {named(names)}"


def untested(labels: Tensor, num_classes: int, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """A note on the classes that the labels of the test set lack; none where it has every class."""
    without = torch.nonzero(torch.bincount(labels, minlength=num_classes) == 0).flatten().tolist()
    if not without:
        return ()
    names = named([f"{k} ({classes[k]})" if k < len(classes) else str(k) for k in without])
    what = "class has no test image and is" if len(without) == 1 else "classes have no test image and are"
    return (f"{len(without)} {what} in no test accuracy: {names}",)
