"""Writes an export: a directory with the model's file, its model card, and the names of the classes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from lt_train.core.errors import UserError
from lt_train.core.io import atomic_directory, remove
from lt_train.core.validation import named, nearest
from sweeps.analysis.load import Sweep
from sweeps.analysis.selection import TrialRuns
from sweeps.reporting.export.card import CARD, GENERATOR, model_card
from sweeps.reporting.export.formats import FORMATS, prepare
from sweeps.reporting.export.trained import trained_head

__all__ = ["CLASSES", "FORMATS", "export_model"]

CLASSES = "classes.txt"
"""The file with the names of the classes, one per line, if they are known."""


def export_model(
    sweep: Sweep,
    out: str | PathLike[str] | None = None,
    *,
    format: str,
    trial: TrialRuns | None = None,
    force: bool = False,
) -> Path:
    """Write a trained classifier with its model card, atomically, and return the model's file.

    The data of the sweep are not needed, except for a dataset whose image size is known from its files only.

    Args:
        sweep: finished, or unfinished: then the leader so far is exported, and the card says so.
        out: directory to write to; None: `export/<format>` in the directory of the sweep.
        format: `state_dict` (`torch.save`) or `safetensors`: weights of the whole model under its own names, for
            heads that are equal to one linear layer. `pt2` (`torch.export`) or `onnx`: the whole network as a graph,
            for any head.
        trial: whose head, that of its best seed; None: the winner's.
        force: replace an earlier export.

    Raises:
        UserError: there is no such format; `out` exists, and is not an earlier export or `force` is not set; or see
            `trained_head` and `formats.prepare`.
        LongtailError: the file of the head is missing or altered, or torch cannot export the model.
        StorageError: the disk is full or not writable; an earlier export is left unchanged.
    """
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {format!r}{nearest(format, FORMATS)}")
    place = sweep.path / "export" / format if out is None else Path(out).expanduser()
    _check_place(place, force)
    head = trained_head(sweep, trial)
    names = head.class_names
    with _quiet():
        export = prepare(head, format)
        with atomic_directory(place) as directory:
            export.write(directory / export.file)
            if names:
                (directory / CLASSES).write_text("".join(f"{name}\n" for name in names))
            (directory / CARD).write_text(model_card(head, export, format, CLASSES if names else ""))
            if force:
                remove(place)
    return place / export.file


def _check_place(place: Path, force: bool) -> None:
    found = [file.name for file in place.iterdir()] if place.is_dir() else []
    if not place.exists() or (place.is_dir() and not found):
        return
    card = place / CARD
    if not (card.is_file() and GENERATOR in card.read_text(errors="replace")):
        raise UserError(f"{place} exists and is not an earlier export; give another --out")
    if others := sorted(name for name in found if name not in (CARD, CLASSES) and not name.startswith("model.")):
        raise UserError(f"{place} has an earlier export and other files, {named(others, 5)}; give another --out")
    if not force:
        raise UserError(f"{place} has an earlier export; give another --out, or replace it with --force")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of torch about its own deprecated code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|onnx|onnxscript|copyreg)\b")
        yield
