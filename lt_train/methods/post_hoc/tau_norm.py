"""`tau_norm`: `z_k = (W_k / |W_k|^tau) f` (Kang et al. 2020; paper, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lt_train.methods.post_hoc.base import PostHocSpec

__all__ = ["TauNorm"]


class TauNorm(PostHocSpec):
    """Weight rows are divided by their length to the power tau; tau 0 leaves them, tau 1 makes them unit rows."""

    needs_rows: ClassVar[bool] = True

    kind: Literal["tau_norm"] = "tau_norm"
    tau: Annotated[float, Field(ge=0, description="power of the row length, >= 0; the field searches 0 to 2")] = 1.0
    bias: Annotated[
        Literal["drop", "keep"],
        Field(description="whether the bias is left out, as in the original, or kept, as LTWB does"),
    ] = "drop"

    def affine(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, row_norms: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `PostHocSpec.affine`."""
        assert row_norms is not None, "a head without rows is refused"
        assert bias is not None, "a head without rows is refused"
        scale = row_norms.clamp(min=1e-12).pow(-lanes["tau"])  # finite for a row of zeros, whose logit is 0
        # The logits come with the bias in them: what is added takes it out, or gives it back unscaled.
        return scale, -scale * bias if self.bias == "drop" else (1.0 - scale) * bias
