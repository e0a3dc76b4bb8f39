"""Files of re-trained classifiers: tensors by name and their origin as JSON, in one safetensors file.

Files are written atomically and read without pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lt_train.core.errors import CheckpointError
from lt_train.core.io import atomic_file, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load_head", "save_head"]

_KEY = "longtail-sweeps head"


def save_head(path: str | os.PathLike[str], state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the state of a classifier (see `MethodSpec.classifier`) and a JSON document to `path`, atomically.

    Raises:
        StorageError: the disk is full or not writable; an existing file is left unchanged.
    """
    with atomic_file(Path(path)) as temporary:
        write_tensors(temporary, dict(state), {_KEY: json.dumps(dict(about))})


def load_head(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, document)` of a file written by `save_head`.

    Raises:
        CheckpointError: the file is missing, truncated or not a head file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"head {path} does not exist; write one with `lt-train retrain --out` or correct the path"
        )
    try:
        with safe_open(path, framework="pt") as contents:
            about = json.loads((contents.metadata() or {})[_KEY])
            if not isinstance(about, dict):
                raise ValueError(f"its metadata must be a mapping, got {about!r}")
            return {name: contents.get_tensor(name) for name in contents.keys()}, about
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"head {path} cannot be read ({error}): it is truncated, altered or not a head file; write it again with "
            "`lt-train retrain --out`"
        ) from None
