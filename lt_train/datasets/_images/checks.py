"""Which images and labels a dataset has, and what is wrong with them.

A dataset kind returns a `Listing`; `probe` looks at the files. Shapes: N images, K classes.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lt_train.core.imports import torch
from lt_train.core.validation import named
from lt_train.datasets._images.decode import Decoder, chunks, map_in_threads
from lt_train.datasets._images.files import EMPTY, MISSING, Source, error_reason, io_error_reason, try_decode
from lt_train.datasets.base import Finding

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ListedImages",
    "Listing",
    "describe_unreadable",
    "duplicate_findings",
    "label_findings",
    "note_untested",
    "probe",
    "unreadable_findings",
]

_NOT_A_FILE = {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""Errors that mean that a name cannot be an image file. All other I/O errors are problems of the machine."""

_CHUNK = 256
"""Images that a thread checks before it reports."""


@dataclass(frozen=True)
class ListedImages:
    """The images of one part, not opened yet, and their labels, int64 `[N]`."""

    source: Source
    labels: Tensor


@dataclass(frozen=True)
class Listing:
    """All parts of a dataset.

    Attributes:
        train, val, test: the parts; `val` is None if a validation set is to be held out of the training set.
        classes: names of the classes; empty if unknown.
        notes: facts that the user must know.
        findings: what the dataset kind itself finds wrong with its labels.
    """

    train: ListedImages
    val: ListedImages | None
    test: ListedImages
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def parts(self) -> dict[str, ListedImages]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


def label_findings(listing: Listing) -> list[Finding]:
    """The listing's own findings, empty parts, labels outside 0 .. K-1 (K from the training set) and empty classes."""
    findings = list(listing.findings)
    labels = listing.train.labels
    num_classes = max(int(labels.max()) + 1 if len(labels) else 0, len(listing.classes))
    for part, listed in listing.parts().items():
        if not len(listed.labels):
            findings.append(Finding(f"{part} must contain images, got none"))
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
                f"labels must be 0 .. {num_classes - 1} without gaps, but some classes have no training images",
                num_classes - len(labels[labels >= 0].unique()),
                tuple(names),
            )
        )
    return findings


def _gaps(present: list[int], num_classes: int, limit: int = 20) -> Iterator[int]:
    """The first labels of 0 .. K-1 that are missing from the sorted list `present`; K may be absurdly large."""
    expected = 0
    for label in [*(label for label in present if label >= 0), num_classes]:
        for missing in range(expected, label):
            if limit == 0:
                return
            limit -= 1
            yield missing
        expected = label + 1


def duplicate_findings(listing: Listing) -> list[Finding]:
    """Images that are listed twice in one part, and training images that are also in another part."""
    findings = []
    names = {name: Counter(part.source.names) for name, part in listing.parts().items()}
    for part, counter in names.items():
        twice = [name for name, count in counter.items() if count > 1]
        if twice:
            findings.append(Finding(f"{part} contains images more than once", len(twice), tuple(twice[:20])))
        both = [name for name in names["train"] if name in counter] if part != "train" else []
        if both:
            findings.append(Finding(f"train and {part} share images", len(both), tuple(both[:20])))
    return findings


def unreadable_findings(unreadable: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """One finding per part and kind of defect; `unreadable` maps part to image name to reason."""
    findings = []
    for what, reasons in (("missing", MISSING), ("empty (0 bytes)", EMPTY), ("unreadable", None)):
        for part, images in unreadable.items():
            names = [
                name if reasons else f"{name} ({why})"
                for name, why in images.items()
                if (why == reasons if reasons else why not in (MISSING, EMPTY))
            ]
            if names:
                findings.append(Finding(f"{part} images are {what}", len(names), tuple(names[:20])))
    return findings


def describe_unreadable(unreadable: Mapping[str, Mapping[str, str]]) -> str:
    """How many images are unreadable, in which parts, and the first twenty by name; see `unreadable_findings`."""
    counts = ", ".join(f"{len(images)} in {part}" for part, images in unreadable.items() if images)
    names = [f"{name} ({why})" for images in unreadable.values() for name, why in images.items()]
    return f"unreadable images: {len(names)} ({counts}): {named(names)}"


def note_untested(labels: Tensor, num_classes: int, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """A note that names the classes without a test image; empty if every class has one."""
    without = torch.nonzero(torch.bincount(labels, minlength=num_classes) == 0).flatten().tolist()
    if not without:
        return ()
    names = named([f"{k} ({classes[k]})" if k < len(classes) else str(k) for k in without])
    what = "class has no test image and is" if len(without) == 1 else "classes have no test image and are"
    return (f"{len(without)} {what} not part of any test accuracy: {names}",)


def probe(
    source: Source,
    decoder: Decoder,
    *,
    whole: bool,
    report_io_errors: bool = False,
    on_checked: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Check every image of `source`.

    Args:
        source: the images.
        decoder: what must be able to decode them.
        whole: decode every image. Otherwise a file with the first and last bytes of a JPEG is trusted, which finds
            missing, empty and truncated files and files that are not images; other formats are always decoded.
        report_io_errors: return I/O errors on existing files as reasons instead of raising the first one.
        on_checked: called with the number of images checked since the last call.

    Returns:
        Bytes per image (0 if unknown), int64 `[N]`, and the reason for each unreadable image by index.

    Raises:
        StorageError: a file exists but the operating system cannot read it, so the image itself may be intact.
    """
    count = len(source.names)
    sizes, unreadable = np.zeros(count, dtype=np.int64), dict[int, str]()

    def check(chunk: range) -> int:
        for index in chunk:
            sizes[index], why = _check(source, index, decoder, whole, report_io_errors)
            if why:
                unreadable[index] = why
        return len(chunk)

    for checked in map_in_threads(check, chunks(count, _CHUNK)):
        if on_checked:
            on_checked(checked)
    return sizes, dict(sorted(unreadable.items()))


def _check(source: Source, index: int, decoder: Decoder, whole: bool, report_io_errors: bool) -> tuple[int, str]:
    try:
        size, head, tail = source.ends(index)
    except OSError as error:
        return 0, io_error_reason(source.names[index], error, report_io_errors or error.errno in _NOT_A_FILE)
    except ValueError as error:  # a name that no file can have
        return 0, error_reason(error)
    if size == 0:
        return 0, EMPTY
    if not whole and (head, tail) == (b"\xff\xd8\xff", b"\xff\xd9"):
        return size, ""
    found = try_decode(source, index, decoder, report_io_errors=report_io_errors)
    return size, found if isinstance(found, str) else ""
