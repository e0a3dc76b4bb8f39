"""Whether this machine has the device that was asked for, and how exactly it is to multiply.

Both command lines ask here first, so that a wrong device costs a message and not a traceback after minutes of work.
Knows torch only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Literal

import torch

from lt_train.errors import UserError

__all__ = ["check_device", "matmul_precision"]


def check_device(device: str) -> torch.device:
    """The device that `device` names: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: another name, no CUDA device on this machine, or none with this index.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UserError(f"device must be cpu, cuda or cuda:N such as cuda:1, got {device!r}")
    if device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError(f"device {device} asked for, and this machine has no CUDA device; use cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        have = "cuda:0 only" if count == 1 else f"cuda:0 .. cuda:{count - 1}"
        raise UserError(f"device {device} asked for, and this machine has {have}; use one of these or cpu")
    return torch.device("cuda", index) if ":" in device else torch.device("cuda")


@contextlib.contextmanager
def matmul_precision(device: str, precision: Literal["float32", "tf32"]) -> Iterator[None]:
    """Products of float32 tensors on a CUDA device in this precision, as before afterwards; a CPU has one only."""
    if torch.device(device).type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee" if precision == "float32" else "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
