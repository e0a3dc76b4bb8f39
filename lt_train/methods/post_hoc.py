"""Post-hoc adjustments: affine maps of the logits, `z'_k = scale_k z_k + offset_k`, applied at evaluation only.

They need no training, so a whole grid of adjustments is evaluated on one set of logits.

Shapes: N images, K classes, `...` any lane axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.core.fields import BATCHED
from lt_train.core.imports import torch
from lt_train.core.registry import KindSpec, Registry
from lt_train.losses import Prior, log_prior, prior_incompatibility

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["POST_HOC", "FittedPostHoc", "LogitAdjust", "PostHocSpec", "TauNorm"]


class PostHocSpec(KindSpec):
    """Base class of post-hoc adjustments.

    Class attributes:
        needs_rows: it reads the norms of weight rows, so the head must have weight rows whose norm matters.
        corrects_prior: it removes the class frequencies from the logits. A method must not do that twice.
    """

    needs_rows: ClassVar[bool] = False
    corrects_prior: ClassVar[bool] = False

    @abstractmethod
    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`(scale, offset)`, each broadcastable to `[..., K]`.

        Args:
            lanes: the batched fields of this spec, each broadcastable to `[..., 1]`.
            class_counts: int64 `[K]`, training images per class.
            row_norms: `[..., K]`, norms of the weight rows of the head; None unless `needs_rows`.
            bias: `[..., K]`, bias of the head; None unless `needs_rows`.
        """

    def incompatibility(self, class_counts: Tensor) -> str:
        """Why this adjustment cannot be applied to data with these class counts `[K]`; empty if it can."""
        return ""


class FittedPostHoc(PostHocSpec):
    """Base class of adjustments that are chosen on the validation set. The accuracy on that set is then optimistic."""

    @abstractmethod
    def fit(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`(scale, offset)`, each `[K]`, for one run. It is called after every epoch; all tensors are on the CPU.

        Args:
            lanes: the batched fields of this spec, each `[]`.
            class_counts: int64 `[K]`, training images per class.
            logits: float32 `[N, K]`, of the N validation images, averaged over views, by the head of this epoch.
            labels: int64 `[N]`, of the validation images.
        """

    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Not used; see `fit`."""
        raise NotImplementedError(f"{type(self).__name__} is fitted")


POST_HOC = Registry("post_hoc", PostHocSpec, "lt_train.methods.post_hoc")  # type: ignore[type-abstract]
"""The plugin group of post-hoc adjustments."""


@POST_HOC.register
class LogitAdjust(PostHocSpec):
    """Subtracts the log prior from the logits, `z_k - tau log p_k`; tau = 0 leaves them unchanged.

    Source: Menon et al. 2021, Long-tail learning via logit adjustment; paper, Table 1.
    """

    corrects_prior: ClassVar[bool] = True

    kind: Literal["logit_adjust"] = "logit_adjust"
    tau: Annotated[float, BATCHED, Field(ge=0, description="factor of the log prior that is subtracted, >= 0")] = 1.0
    prior: Prior = None

    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `PostHocSpec.affine`."""
        offset = -lanes["tau"] * log_prior(self.prior, class_counts)
        return torch.ones_like(offset), offset

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `PostHocSpec.incompatibility`."""
        return prior_incompatibility(self.prior, class_counts)


@POST_HOC.register
class TauNorm(PostHocSpec):
    """Divides each weight row by its norm to the power tau, `z_k = (W_k / |W_k|^tau) f`; tau = 1 gives unit rows.

    Source: Kang et al. 2020, Decoupling Representation and Classifier; paper, Table 1.
    """

    needs_rows: ClassVar[bool] = True

    kind: Literal["tau_norm"] = "tau_norm"
    tau: Annotated[
        float, BATCHED, Field(ge=0, description="exponent of the row norm, >= 0; usually searched from 0 to 2")
    ] = 1.0
    bias: Annotated[
        Literal["drop", "keep"],
        Field(description="drop: leave out the bias, as the original does; keep: keep it unscaled, as LTWB does"),
    ] = "drop"

    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `PostHocSpec.affine`."""
        assert row_norms is not None, "a head without rows is rejected"
        assert bias is not None, "a head without rows is rejected"
        scale = row_norms.clamp(min=1e-12).pow(-lanes["tau"])  # finite for a row of zeros, whose logit is 0
        # The logits contain the bias: the offset removes it, or restores it unscaled.
        return scale, -scale * bias if self.bias == "drop" else (1.0 - scale) * bias
