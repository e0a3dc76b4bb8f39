"""What a sampler is: the order in which one epoch visits the training images, from labels, seed and epoch alone.

A sampler kind is one file with one `SamplerSpec` subclass. Every lane of one seed shares the order, which makes
trials comparable (common random numbers) and their matrix products one. Knows torch only.

Shapes: N training images.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from lt_train.core.registry import KindSpec, Registry

__all__ = [
    "SAMPLERS",
    "SamplerSpec",
]


class SamplerSpec(KindSpec):
    """Base of every sampler kind.

    `corrects_prior` says whether it evens out the class frequencies, which must not happen twice.
    """

    corrects_prior: ClassVar[bool] = False

    @abstractmethod
    def order(self, labels: Tensor, seed: int, epoch: int) -> Tensor:
        """int64 `[N]` on the CPU: which images one epoch visits, N of them whatever the kind.

        Args:
            labels: int64 `[N]`, on the CPU.
            seed: the run's.
            epoch: from 0.
        """


SAMPLERS = Registry("lt_train.methods.samplers", SamplerSpec)  # type: ignore[type-abstract]
"""The data samplers."""
