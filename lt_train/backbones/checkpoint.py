"""A trained classifier in one safetensors file: tensors, and everything needed to rebuild and judge it as JSON.

Written atomically, read without pickle. It knows backbones; it does not know how the classifier was trained, and keeps
what it is told (`about`) as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lt_train.backbones.base import Classifier, parse_backbone
from lt_train.errors import CheckpointError, SpecError
from lt_train.storage import atomic_file
from lt_train.tensor_file import write_tensors

__all__ = ["FORMAT", "load_checkpoint", "save_checkpoint"]

FORMAT = 1
_KEY = "longtail-sweeps checkpoint"


def save_checkpoint(path: Path, classifier: Classifier, about: Mapping[str, Any]) -> None:
    """Write `classifier` to `path`, atomically.

    Args:
        path: the file; one that is there is replaced.
        classifier: on any device.
        about: what else to keep, JSON: dataset, recipe, `mean`, `std`, accuracy. The keys `format`, `backbone`,
            `in_channels` and `num_classes` are filled in from the classifier.

    Raises:
        StorageError: the disk is full or not writable; a file that was there is as before.
    """
    document = {
        **about,
        "format": FORMAT,
        "backbone": classifier.spec.model_dump(mode="json", exclude={"checkpoint"}),
        "in_channels": classifier.in_channels,
        "num_classes": classifier.num_classes,
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
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}): it is truncated, altered or of another kind; train it again"
        ) from None
    if _KEY not in metadata:
        raise CheckpointError(f"checkpoint {path} was not written by `lt-train backbone`; train one with that command")
    document: dict[str, Any] = json.loads(metadata[_KEY])
    if document["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path}: format must be {FORMAT}, got {document['format']}; train it again")
    try:
        backbone = parse_backbone(document["backbone"])
    except SpecError as error:
        raise CheckpointError(f"checkpoint {path}: its backbone is not one of this version: {error}") from None
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten; the global generator is not ours to move
        classifier = Classifier(backbone, document["in_channels"], document["num_classes"])
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint {path}: its tensors are not those of backbone {backbone.kind} with "
            f"{document['num_classes']} classes: {error}"
        ) from None
    return classifier.eval(), document
