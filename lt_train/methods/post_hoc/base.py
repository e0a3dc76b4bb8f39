"""What a post-hoc adjustment is: an affine map of each class's logit, applied at evaluation only.

Because every adjustment of the field is `z'_k = scale_k z_k + offset_k`, a whole grid of them is read off one set of
logits. A kind is one file with one `PostHocSpec` subclass. Knows torch only.

Shapes: K classes, `...` any lane axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from lt_train.core.registry import KindSpec, Registry

__all__ = [
    "POST_HOC",
    "Adjusted",
    "PostHocSpec",
]


class PostHocSpec(KindSpec):
    """Base of every post-hoc kind.

    Class attributes:
        needs_rows: it reads the lengths of weight rows, so the head must have rows whose length counts.
        corrects_prior: it takes the class frequencies out of the logits, which must not happen twice.
    """

    needs_rows: ClassVar[bool] = False
    corrects_prior: ClassVar[bool] = False

    @abstractmethod
    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`(scale, offset)`, each broadcastable to `[..., K]`.

        Args:
            lanes: this spec's float fields, each broadcastable to `[..., 1]`.
            class_counts: int64 `[K]`, training images a class.
            row_norms: `[..., K]`, lengths of the head's weight rows; None unless `needs_rows`.
            bias: `[..., K]`, of the head; None unless `needs_rows`.
        """

    def incompatibility(self, class_counts: Tensor) -> str:
        """Why this cannot be applied to data with these class counts; empty where it can."""
        return ""


class Adjusted(nn.Module):
    """A head with its adjustment: `scale head(f) + offset`, both `[K]` and not trained."""

    scale: Tensor
    offset: Tensor

    def __init__(self, head: nn.Module, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., K]` of features `[..., D]`."""
        logits: Tensor = self.head(features)
        return self.scale * logits + self.offset


POST_HOC = Registry("lt_train.methods.post_hoc", PostHocSpec)  # type: ignore[type-abstract]
"""The post-hoc adjustments."""
