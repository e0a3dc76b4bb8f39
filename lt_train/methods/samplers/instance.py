"""`instance`: every image once an epoch, shuffled; what ordinary training does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lt_train.core.seeding import generator
from lt_train.methods.samplers.base import SamplerSpec

__all__ = ["Instance"]


class Instance(SamplerSpec):
    """Every image once an epoch, in random order."""

    kind: Literal["instance"] = "instance"

    def order(self, labels: Tensor, seed: int, epoch: int) -> Tensor:
        """See `SamplerSpec.order`."""
        return torch.randperm(len(labels), generator=generator("batch-order", seed, epoch))
