"""Writing tensors to one safetensors file, at once or piece by piece, with the operating system's errors as such.

Belongs beside `storage`, which knows no torch: write into the temporary path that `atomic_file` or `atomic_directory`
yields. Reading needs nothing of ours: `safetensors.safe_open`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["allocate", "tensor_offsets", "write_tensors"]

_NAMES = {torch.int64: "I64", torch.float32: "F32", torch.float16: "F16"}
"""The format's names of what a bank holds, in the order in which the library lays tensors out: as they are aligned."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, from any device and in any memory layout, to `file`; of those that share memory each is written.

    Raises:
        OSError: the disk is full or not writable. safetensors reports that as an error of its own with the number in
            its text, which `storage.writing` would not take for what it is.
    """
    apart, seen = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    try:
        save_file(apart, file, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def allocate(file: Path, known: Mapping[str, Tensor], later: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> None:
    """Make `file`, in its full length, with the tensors that are known; the others are zeros, to be written in place.

    The bytes are those that `write_tensors` would write. The disk has room for all of them when this returns, where the
    system can say so.

    Args:
        file: replaced where it is there.
        known: tensors on the CPU, int64, float32 or float16.
        later: dtype and shape of the others.

    Raises:
        OSError: the disk is full or not writable.
    """
    about = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in known.items()}
    about |= {name: (dtype, tuple(shape)) for name, (dtype, shape) in later.items()}
    header, starts, end = {}, {}, 0
    for name in sorted(about, key=lambda name: (list(_NAMES).index(about[name][0]), name)):
        dtype, shape = about[name]
        starts[name], end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.flush()
        size = opened.tell() + end
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
        opened.truncate(size)
        for name, tensor in known.items():
            opened.seek(8 + len(text) + starts[name])
            opened.write(tensor.contiguous().numpy().data)


def tensor_offsets(file: Path) -> dict[str, int]:
    """Where in a safetensors file each tensor begins, in bytes."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {name: 8 + length + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"}
