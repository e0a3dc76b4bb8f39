"""Data samplers: the order in which one epoch visits the training images, from labels, seed and epoch alone.

All lanes of a seed share one order. That makes trials comparable (common random numbers), and one matrix product
serves all lanes.

Shapes: N training images.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from lt_train.core.imports import torch
from lt_train.core.registry import KindSpec, Registry
from lt_train.core.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SAMPLERS", "ClassBalanced", "Instance", "SamplerSpec"]


class SamplerSpec(KindSpec):
    """Base class of data samplers.

    Class attributes:
        corrects_prior: it equalises the class frequencies. A method must not do that twice.
    """

    corrects_prior: ClassVar[bool] = False

    @abstractmethod
    def order(self, labels: Tensor, seed: int, epoch: int) -> Tensor:
        """Indices of the images that one epoch visits: int64 `[N]` on the CPU, always N of them.

        Args:
            labels: int64 `[N]`, on the CPU.
            seed: seed of the run.
            epoch: from 0.
        """


SAMPLERS = Registry("samplers", SamplerSpec, "lt_train.methods.samplers")  # type: ignore[type-abstract]
"""The plugin group of data samplers."""


@SAMPLERS.register
class Instance(SamplerSpec):
    """Every image once per epoch, in random order."""

    kind: Literal["instance"] = "instance"

    def order(self, labels: Tensor, seed: int, epoch: int) -> Tensor:
        """See `SamplerSpec.order`."""
        return torch.randperm(len(labels), generator=generator("batch-order", seed, epoch))


@SAMPLERS.register
class ClassBalanced(SamplerSpec):
    """Draws N images per epoch with replacement: first a class, uniformly among those with images, then an image of it.

    Source: Kang et al. 2020, Decoupling Representation and Classifier; paper, Table 1.
    """

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
        # In float64, so that every image of a class with many millions of images can be drawn.
        place = (torch.rand(len(labels), generator=stream, dtype=torch.float64) * counts[drawn]).long()
        return by_class[first[drawn] + place]
