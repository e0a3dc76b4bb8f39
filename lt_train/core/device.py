"""Whether this machine has the device that was asked for, and how exactly it is to multiply.

Both command lines ask here first, so that a wrong device costs a message and not a traceback after minutes of work.
It also says which precisions a device has, and keeps convolutions from choosing their algorithms by the clock.
Knows torch only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch

from lt_train.core.errors import UserError

__all__ = ["check_device", "check_precision", "exact_float32", "matmul_precision", "repeatable_convolutions"]


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


@contextlib.contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """Products and convolutions of float32 tensors on a CUDA device in float32, not TF32; as before afterwards."""
    if torch.device(device).type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    convolutions = cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        with matmul_precision(device, "float32"):
            yield
    finally:
        convolutions.fp32_precision = before


def check_precision(device: str, precision: Literal["float32", "bfloat16", "float16"]) -> None:
    """Refuse a precision of mixed training that `device` does not have.

    Raises:
        UserError: float16 on a CPU, or bfloat16 on a GPU from before it.
    """
    cuda = torch.device(device).type == "cuda"
    if precision == "float16" and not cuda:
        raise UserError(f"precision float16 needs a CUDA device, and this is {device}; use bfloat16 or float32")
    if precision == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"precision bfloat16 asked for, and {device} does not have it; use float16 or float32")


@contextlib.contextmanager
def repeatable_convolutions(device: str) -> Iterator[None]:
    """Have cuDNN take algorithms that give the same bits every time, and none by measuring; as before afterwards.

    What else a network runs on CUDA (scatters, some poolings' gradients) may still sum in another order each time.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
