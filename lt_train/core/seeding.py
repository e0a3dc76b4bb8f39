"""Random streams: explicit generators that are seeded from a name. The global seed is never set.

A name is a purpose and integers, such as `("stage1", seed, epoch)`, so the stream of any epoch can be created without
replaying earlier epochs.

Shapes: S seeds, B batch, T lanes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lt_train.core.imports import torch
from lt_train.core.io import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Step", "generator", "global_stream"]


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


@dataclass(frozen=True)
class Step:
    """One step of re-training: its position, and random numbers that depend on run seed, name and position only.

    Attributes:
        seed: seed of the run; the seeds of a stack of runs, whose lanes share their random numbers.
        epoch, epochs: the epoch, from 0, and the number of epochs.
        number: of the step within the epoch, from 0.
        images: number of images in the batch, B.
        device: where drawn tensors are used.
    """

    seed: int | tuple[int, ...]
    epoch: int
    epochs: int
    number: int
    images: int
    device: str = "cpu"

    def draw(self, name: str, sample: Callable[[torch.Generator, int], Tensor]) -> Tensor:
        """Random values for the images of the batch. The same name gives the same values within a step.

        Args:
            name: of the stream; streams of different names are independent.
            sample: called with the stream's generator (on the CPU) and B for every run seed; returns `[B]` or `[B, C]`
                on the CPU, such as `lambda stream, images: torch.randn(images, 10, generator=stream)`.

        Returns:
            `[B]` or `[B, C]`; for a stack `[S, B, 1]` or `[S, B, 1, C]`, so that it broadcasts to `[S, B, T]` or
            `[S, B, T, C]`.
        """
        seeds = (self.seed,) if isinstance(self.seed, int) else self.seed
        place = self.epoch, self.number
        drawn = [sample(generator(f"step-{name}", seed, *place), self.images) for seed in seeds]
        values = drawn[0] if isinstance(self.seed, int) else torch.stack(drawn).unsqueeze(2)
        return values.to(self.device)

    def of(self, seed: int | tuple[int, ...]) -> Step:
        """The same step of another run or stack."""
        return replace(self, seed=seed)


def _seed(purpose: str, *numbers: int) -> int:
    return int(fingerprint([purpose, *numbers])[:15], 16)
