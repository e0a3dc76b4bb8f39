"""Predictions of a trained classifier, backbone included, for the images of a folder.

Shapes: N images, B a batch of them, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_train.core.errors import DataError, UserError
from lt_train.core.text import progress
from lt_train.core.validation import named
from lt_train.datasets._images.checks import describe_unreadable
from lt_train.datasets._images.decode import chunks, prefetch
from lt_train.datasets._images.files import Files, ImageFiles, images_below
from sweeps.analysis.image_classifier import backbone_of, with_backbone
from sweeps.analysis.load import Sweep
from sweeps.analysis.selection import TrialRuns
from sweeps.config.interfaces import ImageModel
from sweeps.reporting.export.trained import trained_head

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["predict"]

_log = logging.getLogger(__name__)


def predict(
    sweep: Sweep,
    folder: str | PathLike[str],
    *,
    trial: TrialRuns | None = None,
    unreadable: Literal["fail", "skip"] | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """The predicted class of every image in a folder and its subfolders, sorted by name.

    Images are decoded, resized and normalised as the test images of the sweep's dataset, and tested in the same way:
    with the mean over the mirror image, if the sweep did so. The data of the sweep are not needed, except for a dataset
    whose image size is known from its files only.

    Args:
        sweep: whose backbone is used; it must have one.
        folder: with the images; hidden files and files without the suffix of an image are ignored.
        trial: whose head, that of its best seed; None: the winner's, or the leader's of an unfinished sweep.
        unreadable: what to do if an image cannot be decoded; None: as `bad_images` of the dataset or, for datasets
            without it, `features.unreadable`.
        top: number of classes per image, most probable first; None: one column per class.

    Returns:
        One row per image, with the columns `file` (path below `folder`), `class` and `probability` of the most
        probable class. Then `p_<class>` for every class or, with `top`, `class_2`, `probability_2` and so on.
        Probabilities are the softmax of the logits. Classes are named as in the dataset when the features were
        extracted, or numbered from 0 if it had no names.

    Raises:
        UserError: the folder has no images, the sweep has no backbone, `top` is not in 1 .. K; or see `trained_head`
            and `backbone_of`.
        DataError: an image cannot be decoded, and `unreadable` is fail.
        LongtailError: see `trained_head`.
        StorageError: the operating system cannot read a file.
    """
    import pandas as pd

    head = trained_head(sweep, trial)
    frozen, source = backbone_of(sweep)
    classes = head.dims[0]
    if top is not None and not 1 <= top <= classes:
        raise UserError(f"top must be in 1 .. {classes}, the number of classes, got {top}")
    root = Path(folder).expanduser()
    names = _image_names(root)
    dataset, manifest = sweep.spec.dataset, sweep.manifest
    assert manifest is not None, "the backbone was found by the manifest"
    rule = unreadable or getattr(dataset, "bad_images", sweep.spec.features.unreadable)
    images = ImageFiles(Files(root, names), dataset.decoder(), np.zeros(len(names), dtype=np.int64))
    model = with_backbone(head.classifier, frozen, manifest.inputs, source.shape)
    found = _run(model, images, sweep.spec.features.batch_size, top)
    wrong = found.unreadable
    if wrong:
        text = describe_unreadable({str(root): {names[row]: why for row, why in wrong.items()}})
        if rule == "fail":
            raise DataError(f"{text}; fix or remove them, or leave them out with --unreadable skip")
        _log.warning("left out: %s", text)
    kept = [row for row in range(len(names)) if row not in wrong]
    labels = [*head.class_names] or [str(k) for k in range(classes)]
    columns: dict[str, object] = {"file": [names[row] for row in kept]}
    for place in range(top or 1):
        number = f"_{place + 1}" if place else ""
        columns[f"class{number}"] = [labels[k] for k in found.classes[kept, place].tolist()]
        columns[f"probability{number}"] = found.highest[kept, place].numpy()
    frame = pd.DataFrame(columns)
    if top is None:
        every = pd.DataFrame(found.every[kept].numpy(), columns=[f"p_{label}" for label in labels])
        frame = pd.concat([frame, every], axis=1)
    return frame


def _image_names(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{root} must be a folder of images, but is not a folder")
    found_names, others = images_below(root, "")
    special = [name for name in found_names if (root / name).exists() and not (root / name).is_file()]  # would block
    names, others = [name for name in found_names if name not in special], [*others, *special]
    if not names:
        found = f"; it has {len(others)} other files: {named(others, 5)}" if others else ""
        raise UserError(f"{root} must contain images, but has no file with the suffix of an image{found}")
    if others:
        _log.info("note: files that are not images were ignored: %d (%s)", len(others), named(others, 5))
    return names


class _Found(NamedTuple):
    """Predictions of images, sorted by probability; of unreadable images they are meaningless.

    `highest` and `classes` are `[N, top]`; `every` are all probabilities `[N, K]`, empty with `top`.
    """

    highest: Tensor
    classes: Tensor
    every: Tensor
    unreadable: dict[int, str]


@torch.inference_mode()
def _run(model: ImageModel, images: ImageFiles, batch_size: int, top: int | None) -> _Found:
    best: list[tuple[Tensor, Tensor]] = []
    every: list[Tensor] = []
    unreadable: dict[int, str] = {}
    with progress("predictions", "image") as report:
        for rows, (decoded, wrong) in _batches(images, batch_size):
            if model.shape[2] == 1:
                decoded = _luminance(decoded)
            probabilities = model.module(decoded.permute(0, 2, 3, 1)).double().softmax(dim=1)
            highest, classes = probabilities.topk(top or 1, dim=1)
            best.append((highest, classes))
            if top is None:
                every.append(probabilities)
            unreadable |= {rows.start + place: why for place, why in wrong.items()}
            report(rows.stop, len(images), "")
    highest, classes = (torch.cat(part) for part in zip(*best, strict=True))
    return _Found(highest, classes, torch.cat(every or [torch.empty(0)]), unreadable)


def _batches(images: ImageFiles, batch_size: int) -> Iterator[tuple[range, tuple[Tensor, dict[int, str]]]]:
    batches = chunks(len(images), batch_size)
    reads = (functools.partial(images.try_read, slice(rows.start, rows.stop)) for rows in batches)
    yield from zip(batches, prefetch(reads), strict=True)


def _luminance(images: Tensor) -> Tensor:
    """uint8 `[B, 3, H, W]` to `[B, 1, H, W]` as Pillow's mode L: (19595 R + 38470 G + 7471 B) / 2^16, rounded."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
    grey = (images.int() * weights).sum(dim=1, keepdim=True, dtype=torch.int32)
    return ((grey + 2**15) >> 16).to(torch.uint8)
