"""`lws`: learnable weight scaling (Kang et al. 2020): a trained factor a class on a classifier that stays as it is.

The frozen classifier is applied once a batch for all lanes, so a lane costs a few passes over its logits and no
matrix product at all.

Shapes: S seeds, B batch, T lanes, K classes, D features, I inputs (here logits of the frozen classifier).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lt_train.methods.heads.base import Classifier, HeadSpec, StackedHead

__all__ = ["LearnableWeightScaling"]


class ScaledModule(nn.Module):
    """`c_k (W_k f + b_k)`: `scale [K]` is trained, `weight [K, D]` and `bias [K]` are buffers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", bias.clone())
        self.scale = nn.Parameter(torch.ones_like(bias))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., K]` of features `[..., D]`."""
        return self.scale * nn.functional.linear(features, self.weight, self.bias)


class StackedScaling(StackedHead):
    """`scale [S, 1, T, K]` over logits that all lanes share."""

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


class LearnableWeightScaling(HeadSpec):
    """`z_k = c_k (W_k f + b_k)`: only the factors c are trained, from 1; the classifier stays as it is."""

    needs_classifier: ClassVar[bool] = True

    kind: Literal["lws"] = "lws"

    def module(self, start: Classifier) -> nn.Module:
        """A `ScaledModule` with all factors 1."""
        return ScaledModule(*start)

    def trained_numbers(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.trained_numbers`."""
        return num_classes

    def stack(
        self, modules_ST: Sequence[Sequence[ScaledModule]], lanes: Mapping[str, Tensor], device: str
    ) -> StackedHead:
        """See `HeadSpec.stack`."""
        scale = torch.stack([torch.stack([head.scale.detach() for head in row])[None] for row in modules_ST])
        one = modules_ST[0][0]
        return StackedScaling(scale.to(device), {"weight": one.weight.cpu(), "bias": one.bias.cpu()})

    def inputs(self, features: Tensor, start: Classifier | None) -> Tensor:
        """The stage-1 classifier's logits, `[..., K]`."""
        assert start is not None, "a method with this head is refused on a bank without a classifier"
        return nn.functional.linear(features, *start)
