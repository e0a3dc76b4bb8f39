"""`class_balanced`: a class uniformly, then one of its images uniformly (Kang et al. 2020; paper, Table 1)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lt_train.core.seeding import generator
from lt_train.methods.samplers.base import SamplerSpec

__all__ = ["ClassBalanced"]


class ClassBalanced(SamplerSpec):
    """Draws with replacement: a class uniformly among those with images, then one of its images; N an epoch."""

    corrects_prior: ClassVar[bool] = True

    kind: Literal["class_balanced"] = "class_balanced"

    def order(self, labels: Tensor, seed: int, epoch: int) -> Tensor:
        """See `SamplerSpec.order`."""
        stream = generator("class-balanced-order", seed, epoch)
        by_class = labels.argsort(stable=True)
        counts = torch.bincount(labels)
        first = counts.cumsum(0) - counts
        present = counts.nonzero().squeeze(1)
        drawn = present[torch.randint(len(present), (len(labels),), generator=stream)]
        # float64, so that a class of many millions would still have every image drawn
        place = (torch.rand(len(labels), generator=stream, dtype=torch.float64) * counts[drawn]).long()
        return by_class[first[drawn] + place]
