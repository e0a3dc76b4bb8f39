"""The durable state of an unfinished training: one safetensors file beside its checkpoint, of one step.

Replaced whole at every save, and believed only by the very training that wrote it. Knows tensors and files; knows
nothing of networks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lt_train.core.io import atomic_file
from lt_train.core.tensor_file import write_tensors

__all__ = ["StateFile", "resume_file"]

_KEY = "longtail-sweeps training state"


def resume_file(out: Path) -> Path:
    """Where the state of an unfinished training of `out` lies."""
    return out.with_name(out.name + ".resume")


@dataclass(frozen=True)
class StateFile:
    """The file of the training whose `identity` is the hash of everything that decides its weights."""

    path: Path
    identity: str

    def save(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Replace the file.

        Raises:
            StorageError: it could not be written; it is as before.
        """
        metadata = {_KEY: json.dumps({"identity": self.identity, "state": document})}
        with atomic_file(self.path) as temporary:
            write_tensors(temporary, tensors, metadata)

    def load(self) -> tuple[tuple[dict[str, Tensor], dict[str, Any]] | None, str]:
        """What was saved, None where there is nothing of this training, and a note on why."""
        if not self.path.is_file():
            return None, ""
        try:
            with safe_open(self.path, framework="pt") as contents:
                about = json.loads((contents.metadata() or {}).get(_KEY, "{}"))
                if not isinstance(about, dict) or about.get("identity") != self.identity:
                    return None, f"{self.path} is of another training and is ignored"
                tensors = {name: contents.get_tensor(name) for name in contents.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            return None, f"{self.path} cannot be read ({error}) and is ignored"
        return (tensors, about["state"]), ""

    def remove(self) -> None:
        """The training is over and its checkpoint written."""
        self.path.unlink(missing_ok=True)
