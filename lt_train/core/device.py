"""Devices: validation of device names and precisions, and contexts for the numerics of CUDA.

Both command lines validate the device first, so that an unavailable device is reported before any work is done.
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
        UserError: the name is invalid, or this machine has no such CUDA device.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UserError(f"device must be cpu, cuda or cuda:N such as cuda:1, got {device!r}")
    if device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError(f"device {device} is not available: this machine has no CUDA device; use cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        have = "cuda:0 only" if count == 1 else f"cuda:0 .. cuda:{count - 1}"
        raise UserError(f"device {device} is not available: this machine has {have}; use one of these or cpu")
    return torch.device("cuda", index) if ":" in device else torch.device("cuda")


@contextlib.contextmanager
def matmul_precision(device: str, precision: Literal["float32", "tf32"]) -> Iterator[None]:
    """Context: matrix products of float32 tensors on CUDA use this precision. No effect on a CPU."""
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
    """Context: matrix products and convolutions of float32 tensors on CUDA use float32, not TF32."""
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
    """Reject a precision for mixed-precision training that `device` does not support.

    Raises:
        UserError: float16 on a CPU, or bfloat16 on a GPU without it.
    """
    cuda = torch.device(device).type == "cuda"
    if precision == "float16" and not cuda:
        raise UserError(f"precision float16 needs a CUDA device, got device {device}; use bfloat16 or float32")
    if precision == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"precision bfloat16 is not supported by device {device}; use float16 or float32")


@contextlib.contextmanager
def repeatable_convolutions(device: str) -> Iterator[None]:
    """Context: cuDNN uses deterministic algorithms and does not choose them by timing.

    Other CUDA operations of a network (scatters, gradients of some poolings) may still sum in varying order.
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
