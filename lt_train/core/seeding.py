"""Where random numbers come from: explicit generators named by what they are for. The global seed is never touched.

A stream is named by a purpose and integers, such as `("stage1", seed, epoch)`, so any epoch of any stream can be
reached without replaying what came before it. Knows torch only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from lt_train.core.io import fingerprint

__all__ = ["generator", "global_stream"]


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A fresh CPU generator for one stream; equal names give equal streams, different names unrelated ones."""
    return torch.Generator().manual_seed(_seed(purpose, *numbers))


@contextlib.contextmanager
def global_stream(device: str, purpose: str, *numbers: int) -> Iterator[None]:
    """Run code that only knows torch's global generator (initialisation, dropout) from a named stream.

    The global generators of the CPU and of `device` are as before afterwards.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed(purpose, *numbers))
        yield


def _seed(purpose: str, *numbers: int) -> int:
    return int(fingerprint([purpose, *numbers])[:15], 16)
