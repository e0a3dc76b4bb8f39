"""The resumable state of an unfinished training: one safetensors file beside the checkpoint.

Every save replaces the whole file. It is used only by the training that wrote it, recognised by its identity.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lt_train.core.io import atomic_file, write_tensors

__all__ = ["StateFile", "resume_file"]

_KEY = "longtail-sweeps training state"


def resume_file(out: Path) -> Path:
    """The path of the state file of an unfinished training of `out`."""
    return out.with_name(out.name + ".resume")


@dataclass(frozen=True)
class StateFile:
    """The state file of one training; `identity` is the hash of everything that determines its weights."""

    path: Path
    identity: str

    def save(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Replace the file atomically.

        Raises:
            StorageError: it could not be written; the previous file is kept.
        """
        metadata = {_KEY: json.dumps({"identity": self.identity, "state": document})}
        with atomic_file(self.path) as temporary:
            write_tensors(temporary, tensors, metadata)

    def load(self) -> tuple[tuple[dict[str, Tensor], dict[str, Any]] | None, str]:
        """The saved state, or None if there is none of this training, and a note that says why a file is ignored."""
        if not self.path.is_file():
            return None, ""
        try:
            with safe_open(self.path, framework="pt") as contents:
                about = json.loads((contents.metadata() or {}).get(_KEY, "{}"))
                if not isinstance(about, dict) or about.get("identity") != self.identity:
                    return None, f"{self.path} belongs to another training and is ignored"
                tensors = {name: contents.get_tensor(name) for name in contents.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            return None, f"{self.path} cannot be read ({error}) and is ignored"
        return (tensors, about["state"]), ""

    def remove(self) -> None:
        """Delete the file, once the checkpoint is written."""
        self.path.unlink(missing_ok=True)
