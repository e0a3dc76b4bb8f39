"""Heads that re-scale the frozen stage-1 classifier: `LWS` (one factor per class) and `DisAlign` (gated calibration).

The frozen classifier is applied once per batch for all lanes. An LWS lane costs a few passes over its logits and no
matrix product; a DisAlign lane adds one column of a matrix product for its gate.

Shapes: S seeds, B batch, T lanes, K classes, D features, I inputs: logits of the frozen classifier (LWS), or these
logits followed by the features (DisAlign).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from lt_train.core.imports import nn, torch
from lt_train.methods.heads.base import HEADS, Classifier, HeadSpec, StackedHead

if TYPE_CHECKING:
    from torch import Tensor

    from lt_train.methods.heads._modules import AlignedModule, ScaledModule

__all__ = ["LWS", "DisAlign"]


class StackedScaling(StackedHead):
    """`scale [S, 1, T, K]`, applied to logits that all lanes share."""

    def __init__(self, scale_S1TK: Tensor, frozen: dict[str, Tensor]) -> None:
        self.parameters, self.frozen = {"scale": scale_S1TK}, frozen

    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """See `StackedHead.logits`; the inputs are the frozen classifier's logits, `[S, B, K]`."""
        return self.parameters["scale"] * inputs_SBI.unsqueeze(2)

    def accumulate(
        self,
        into: dict[str, Tensor],
        inputs_SBI: Tensor,
        logits_SBTK: Tensor,
        grad_SBTK: Tensor,
        keep: float,
        decay: Tensor | None,
    ) -> None:
        """`dL/dc_k = sum_b g_bk (W_k f_b + b_k)`. See `StackedHead.accumulate`."""
        gradient = (grad_SBTK * inputs_SBI.unsqueeze(2)).sum(dim=1, keepdim=True)
        into["scale"].mul_(keep).add_(gradient)
        if decay is not None:
            into["scale"].addcmul_(self.parameters["scale"], decay)

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """See `StackedHead.state`."""
        return {"scale": self.parameters["scale"][seed, 0, lane].clone().cpu(), **self.frozen}


@HEADS.register
class LWS(HeadSpec):
    """Learnable weight scaling, `z_k = c_k (W_k f + b_k)`: only the factors c are trained, starting from 1.

    Source: Kang et al. 2020, Decoupling Representation and Classifier.
    """

    needs_classifier: ClassVar[bool] = True
    affine: ClassVar[bool] = True

    kind: Literal["lws"] = "lws"

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """A `ScaledModule` with all factors equal to 1."""
        from lt_train.methods.heads._modules import ScaledModule

        return ScaledModule(*start)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.num_parameters`."""
        return num_classes

    def stack(
        self, modules_ST: Sequence[Sequence[ScaledModule]], lanes: Mapping[str, Tensor], device: str
    ) -> StackedHead:
        """See `HeadSpec.stack`."""
        scale = torch.stack([torch.stack([head.scale.detach() for head in row])[None] for row in modules_ST])
        one = modules_ST[0][0]
        return StackedScaling(scale.to(device), {"weight": one.weight.cpu(), "bias": one.bias.cpu()})

    def inputs(self, features: Tensor, start: Classifier | None) -> Tensor:
        """Logits of the stage-1 classifier, `[..., K]`."""
        assert start is not None, "a method with this head is rejected for a bank without a classifier"
        return nn.functional.linear(features, *start)


class StackedAlignment(StackedHead):
    """`alpha, beta [S, 1, T, K]`, `gate [S, D, T, 1]`, `gate_bias [S, 1, T, 1]`; inputs: logits, then features."""

    def __init__(self, parameters: dict[str, Tensor], frozen: dict[str, Tensor]) -> None:
        self.parameters, self.frozen = parameters, frozen
        self._confidence_SBT1 = torch.empty(0)

    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """See `StackedHead.logits`."""
        logits_SB1K, features_SBD = self._parts(inputs_SBI)
        gate = torch.baddbmm(self.parameters["gate_bias"].flatten(2), features_SBD, self.parameters["gate"].flatten(2))
        self._confidence_SBT1 = gate.sigmoid_().unsqueeze(-1)
        return self._moved(logits_SB1K).mul_(self._confidence_SBT1).add_(logits_SB1K)

    def accumulate(
        self,
        into: dict[str, Tensor],
        inputs_SBI: Tensor,
        logits_SBTK: Tensor,
        grad_SBTK: Tensor,
        keep: float,
        decay: Tensor | None,
    ) -> None:
        """See `StackedHead.accumulate`."""
        logits_SB1K, features_SBD = self._parts(inputs_SBI)
        confidence = self._confidence_SBT1
        by_gate = (grad_SBTK * self._moved(logits_SB1K)).sum(dim=-1)
        by_gate *= (confidence * (1.0 - confidence)).squeeze(-1)
        through = grad_SBTK * confidence
        into["gate"].flatten(2).baddbmm_(features_SBD.mT, by_gate, beta=keep)
        for name, gradient in (
            ("alpha", (through * logits_SB1K).sum(dim=1, keepdim=True)),
            ("beta", through.sum(dim=1, keepdim=True)),
            ("gate_bias", by_gate.sum(dim=1, keepdim=True).unsqueeze(-1)),
        ):
            into[name].mul_(keep).add_(gradient)
        if decay is not None:
            for name, parameter in self.parameters.items():
                into[name].addcmul_(parameter, decay)

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """See `StackedHead.state`."""
        one = {name: parameter[seed, :, lane].clone().cpu() for name, parameter in self.parameters.items()}
        by_class = {name: one[name][0] for name in ("alpha", "beta")}
        return {**by_class, "gate": one["gate"][:, 0], "gate_bias": one["gate_bias"][0, 0], **self.frozen}

    def _parts(self, inputs_SBI: Tensor) -> tuple[Tensor, Tensor]:
        classes = self.parameters["alpha"].shape[-1]
        return inputs_SBI[..., :classes].unsqueeze(2), inputs_SBI[..., classes:]

    def _moved(self, logits_SB1K: Tensor) -> Tensor:
        """`alpha z + beta - z`, `[S, B, T, K]`."""
        return (self.parameters["alpha"] - 1.0) * logits_SB1K + self.parameters["beta"]


@HEADS.register
class DisAlign(HeadSpec):
    """Gated calibration of the frozen logits, `z_k + g (alpha_k z_k + beta_k - z_k)` with `g = sigmoid(v f + v_0)`.

    Source: Zhang et al. 2021, Distribution Alignment: A Unified Framework for Long-tail Visual Recognition, Eq. 6 to 8.
    """

    needs_classifier: ClassVar[bool] = True

    kind: Literal["disalign"] = "disalign"

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """An `AlignedModule` that returns the logits of the classifier."""
        from lt_train.methods.heads._modules import AlignedModule

        return AlignedModule(*start)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.num_parameters`."""
        return 2 * num_classes + feature_dim + 1

    def stack(
        self, modules_ST: Sequence[Sequence[AlignedModule]], lanes: Mapping[str, Tensor], device: str
    ) -> StackedHead:
        """See `HeadSpec.stack`."""

        def stacked(name: str, columns: int) -> Tensor:
            values = [[getattr(head, name).detach().reshape(-1, columns) for head in row] for row in modules_ST]
            return torch.stack([torch.stack(row, dim=1) for row in values]).to(device)

        one = modules_ST[0][0]
        classes = one.alpha.shape[0]
        columns = {"alpha": classes, "beta": classes, "gate": 1, "gate_bias": 1}
        parameters = {name: stacked(name, width) for name, width in columns.items()}
        return StackedAlignment(parameters, {"weight": one.weight.cpu(), "bias": one.bias.cpu()})

    def inputs(self, features: Tensor, start: Classifier | None) -> Tensor:
        """Logits of the stage-1 classifier and the features, concatenated: `[..., K + D]`."""
        assert start is not None, "a method with this head is rejected for a bank without a classifier"
        return torch.cat([nn.functional.linear(features, *start), features], dim=-1)
