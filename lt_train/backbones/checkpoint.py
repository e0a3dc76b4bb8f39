"""A trained classifier in one safetensors file: tensors, and everything needed to rebuild and judge it as JSON.

Written atomically, read without pickle. It knows backbones; it does not know how the classifier was trained, and keeps
what it is told (`about`) as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lt_train.backbones.base import BACKBONES, Classifier
from lt_train.core.errors import CheckpointError, SpecError
from lt_train.core.io import atomic_file
from lt_train.core.tensor_file import write_tensors

__all__ = ["FORMAT", "load_checkpoint", "save_checkpoint", "written_here"]

FORMAT = 1
_KEY = "longtail-sweeps checkpoint"


def save_checkpoint(path: Path, classifier: Classifier, about: Mapping[str, Any]) -> None:
    """Write `classifier` to `path`, atomically.

    Args:
        path: the file; one that is there is replaced.
        classifier: on any device.
        about: what else to keep, JSON: dataset, recipe, `mean`, `std`, accuracy. The keys `format`, `backbone`,
            `in_channels`, `num_classes` and `cosine_scale` are filled in from the classifier.

    Raises:
        StorageError: the disk is full or not writable; a file that was there is as before.
    """
    document = {
        **about,
        "format": FORMAT,
        "backbone": classifier.spec.model_dump(mode="json", exclude={"checkpoint"}),
        "in_channels": classifier.in_channels,
        "num_classes": classifier.num_classes,
        "cosine_scale": classifier.cosine_scale,
    }
    with atomic_file(path) as temporary:
        write_tensors(temporary, classifier.state_dict(), {_KEY: json.dumps(document)})


def load_checkpoint(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier, on the CPU in evaluation mode, and the document it was saved with.

    Raises:
        CheckpointError: the file is missing, truncated, of another format, or its tensors are not the backbone's.
    """
    path = path.expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} does not exist; train one with `lt-train backbone` or correct the path"
        )
    try:
        with safe_open(path, framework="pt") as contents:
            metadata = contents.metadata() or {}
            tensors = {name: contents.get_tensor(name) for name in contents.keys()}
    except (SafetensorError, OSError) as error:
        if _is_pickle(path):
            raise CheckpointError(
                f"checkpoint {path} is a PyTorch pickle, which is not read; a checkpoint is the safetensors file that "
                "`lt-train backbone` writes; weights of others are for backbone imported"
            ) from None
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}): it is truncated, altered or of another kind; train it again"
        ) from None
    if _KEY not in metadata:
        raise CheckpointError(
            f"checkpoint {path} was not written by `lt-train backbone`; train one with that command, or read it as "
            "weights of others with backbone imported"
        )
    document = _document(path, metadata[_KEY])
    try:
        backbone = BACKBONES.parse(document["backbone"])
    except SpecError as error:
        raise CheckpointError(f"checkpoint {path}: its backbone is not one of this version: {error}") from None
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten; the generator is not ours to move
            # Files from before there was a head with a scale do not speak of it.
            scale = document.get("cosine_scale")
            classifier = Classifier(backbone, document["in_channels"], document["num_classes"], scale)
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint {path}: its tensors are not those of backbone {backbone.kind} with "
            f"{document['num_classes']} classes: {error}"
        ) from None
    return classifier.eval(), document


def written_here(path: Path) -> bool:
    """Whether `path` is a checkpoint of ours, sound or not in what it says, and not a file of another tool."""
    try:
        with safe_open(path, framework="pt") as contents:
            return _KEY in (contents.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _document(path: Path, text: str) -> dict[str, Any]:
    """The JSON document of a checkpoint, with every key that is read of it checked."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: its document is no JSON ({error}); train it again") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"checkpoint {path}: its document must be a mapping, got {text[:80]}; train it again")
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path}: format must be {FORMAT}, got {document.get('format')}; train it again"
        )
    backbone = document.get("backbone")
    checks: dict[str, tuple[bool, str]] = {
        "backbone": (isinstance(backbone, dict) and isinstance(backbone.get("kind"), str), "a mapping with a kind"),
        **{name: (_is_count(document.get(name)), "a whole number above 0") for name in ("in_channels", "num_classes")},
    }
    if document.get("cosine_scale") is not None:
        right = _are_numbers([document["cosine_scale"]], 1) and document["cosine_scale"] > 0
        checks["cosine_scale"] = right, "null or a finite number above 0"
    for name in ("mean", "std"):
        if name in document:
            right = _are_numbers(document[name], document.get("in_channels"))
            checks[name] = right, "a list of one finite number an input channel"
    for name, (right, rule) in checks.items():
        if not right:
            raise CheckpointError(
                f"checkpoint {path}: {name} must be {rule}, got {document.get(name)!r}; train it again"
            )
    return document


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_numbers(values: Any, count: Any) -> bool:
    if not isinstance(values, list) or len(values) != count:
        return False
    return all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in values)


def _is_pickle(path: Path) -> bool:
    """Whether the file is what `torch.save` writes: a zip archive, or in old versions a bare pickle."""
    if path.suffix in {".pt", ".pth"}:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return False
    return start == b"PK" or start in {b"\x80\x02", b"\x80\x04"}
