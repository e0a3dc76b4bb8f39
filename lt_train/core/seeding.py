"""Random streams: explicit generators that are seeded from a name. The global seed is never set.

A name is a purpose and integers, such as `("stage1", seed, epoch)`, so the stream of any epoch can be created without
replaying earlier epochs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lt_train.core.imports import torch
from lt_train.core.io import fingerprint

__all__ = ["generator", "global_stream"]


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A new CPU generator for one stream. Equal names give equal streams, different names independent ones."""
    return torch.Generator().manual_seed(_seed(purpose, *numbers))


@contextlib.contextmanager
def global_stream(device: str, purpose: str, *numbers: int) -> Iterator[None]:
    """Context: code that uses the global generator of torch (initialisation, dropout) draws from a named stream.

    The global generators of the CPU and of `device` are restored afterwards.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed(purpose, *numbers))
        yield


def _seed(purpose: str, *numbers: int) -> int:
    return int(fingerprint([purpose, *numbers])[:15], 16)
