"""Whether this machine has the device that was asked for, before anything is loaded or trained.

Both command lines ask here first, so that a wrong device costs a message and not a traceback after minutes of work.
Knows torch only.
"""

from __future__ import annotations

import re

import torch

from lt_train.errors import UserError

__all__ = ["check_device"]


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
