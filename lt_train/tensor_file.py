"""Writing tensors to one safetensors file, with the operating system's errors as the operating system's errors.

Belongs beside `storage`, which knows no torch: write into the temporary path that `atomic_file` or `atomic_directory`
yields. Reading needs nothing of ours: `safetensors.safe_open`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["write_tensors"]


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, from any device and in any memory layout, to `file`.

    Raises:
        OSError: the disk is full or not writable. safetensors reports that as an error of its own with the number in
            its text, which `storage.writing` would not take for what it is.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
