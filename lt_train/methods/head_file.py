"""A re-trained classifier in one safetensors file: its tensors by name, and where they came from as JSON.

Written atomically, read without pickle. Knows nothing of methods; the document is kept as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lt_train.core.errors import CheckpointError
from lt_train.core.io import atomic_file
from lt_train.core.tensor_file import write_tensors

__all__ = ["load_head", "save_head"]

_KEY = "longtail-sweeps head"


def save_head(path: Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors (`MethodSpec.classifier` says which) to `path`, atomically, with a JSON document.

    Raises:
        StorageError: the disk is full or not writable; a file that was there is as before.
    """
    with atomic_file(path) as temporary:
        write_tensors(temporary, dict(state), {_KEY: json.dumps(dict(about))})


def load_head(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, document)` of a file written by `save_head`.

    Raises:
        CheckpointError: the file is missing, truncated or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(
            f"head {path} does not exist; write one with `lt-train retrain --out` or correct the path"
        )
    try:
        with safe_open(path, framework="pt") as contents:
            about = json.loads((contents.metadata() or {})[_KEY])
            if not isinstance(about, dict):
                raise ValueError(f"its document must be a mapping, got {about!r}")
            return {name: contents.get_tensor(name) for name in contents.keys()}, about
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"head {path} cannot be read ({error}): it is truncated, altered or no head file; write it again with "
            "`lt-train retrain --out`"
        ) from None
