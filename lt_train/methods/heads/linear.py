"""The linear head `z = W f + b` and the cosine head `z_k = s cos(W_k, f)`.

A stack holds the weights of all lanes of a seed in one matrix. The hand-written gradient of the cosine head removes the
component along each weight row. That component is the sum of gradient times logit, so it costs a pass over the logits,
not over the weights.

Shapes: S seeds, B batch, T lanes, K classes, D features, I inputs (the features; normalised for the cosine head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.core.fields import BATCHED
from lt_train.core.imports import nn, torch
from lt_train.methods.heads.base import HEADS, Classifier, HeadSpec, StackedHead

if TYPE_CHECKING:
    from torch import Tensor

    from lt_train.methods.heads._modules import CosineModule

__all__ = ["Cosine", "Linear", "StackedLinear"]


def _rows(weight_DK: Tensor) -> Tensor:
    """A copy `[K, D]` on the CPU; `contiguous` alone copies nothing if D is 1."""
    return weight_DK.T.clone(memory_format=torch.contiguous_format).cpu()


class StackedLinear(StackedHead):
    """`weight [S, D, T, K]` and `bias [S, 1, T, K]`: one matrix product per seed, forward and backward."""

    def __init__(self, weight_SDTK: Tensor, bias_S1TK: Tensor) -> None:
        self.parameters = {"weight": weight_SDTK, "bias": bias_S1TK}

    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """See `StackedHead.logits`."""
        weight_SDTK, bias_S1TK = self.parameters["weight"], self.parameters["bias"]
        flat = torch.baddbmm(bias_S1TK.flatten(2), inputs_SBI, weight_SDTK.flatten(2))
        return flat.view(*flat.shape[:2], *weight_SDTK.shape[2:])

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
        into["weight"].flatten(2).baddbmm_(inputs_SBI.mT, grad_SBTK.flatten(2), beta=keep)
        into["bias"].mul_(keep).add_(grad_SBTK.sum(dim=1, keepdim=True))
        if decay is not None:
            for name, parameter in self.parameters.items():
                # Expanded over K instead of broadcast, so that the inner loop of torch runs over all lanes at once.
                into[name].addcmul_(parameter, decay.expand(-1, -1, -1, parameter.shape[-1]).contiguous())

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """See `StackedHead.state`."""
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        return {
            "weight": weight[seed, :, lane].T.clone(memory_format=torch.contiguous_format).cpu(),
            "bias": bias[seed, 0, lane].clone().cpu(),
        }

    def row_norms(self) -> tuple[Tensor, Tensor]:
        """See `StackedHead.row_norms`."""
        return self.parameters["weight"].square().sum(dim=1, keepdim=True).sqrt(), self.parameters["bias"]


@HEADS.register
class Linear(HeadSpec):
    """One weight row and one bias per class, `z = W f + b`."""

    has_rows: ClassVar[bool] = True
    affine: ClassVar[bool] = True

    kind: Literal["linear"] = "linear"

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """`torch.nn.Linear` with the values of `start`."""
        classes, dim = start[0].shape
        # The plain constructor draws from the global generator, and skip_init imports sympy, which takes seconds.
        head = nn.Linear(dim, classes, device="meta")
        head.load_state_dict({"weight": start[0].clone(), "bias": start[1].clone()}, assign=True)
        return head

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.num_parameters`."""
        return num_classes * (feature_dim + 1)

    def stack(self, modules_ST: Sequence[Sequence[nn.Linear]], lanes: Mapping[str, Tensor], device: str) -> StackedHead:
        """See `HeadSpec.stack`."""
        weight = torch.stack([torch.stack([head.weight.detach().T for head in row], dim=1) for row in modules_ST])
        bias = torch.stack([torch.stack([head.bias.detach() for head in row])[None] for row in modules_ST])
        return StackedLinear(weight.to(device).contiguous(), bias.to(device).contiguous())


MIN_NORM = 1e-12
"""Lower bound of norms, so that a feature of zeros has logits 0."""


class StackedCosine(StackedHead):
    """`weight [S, D, T, K]`; rows are normalised on the fly."""

    def __init__(self, weight_SDTK: Tensor, scale_S1T: Tensor) -> None:
        self.parameters = {"weight": weight_SDTK}
        self.scale_S1T1 = scale_S1T.unsqueeze(-1)
        self._inverse_norm_S1TK = torch.empty(0)

    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """See `StackedHead.logits`."""
        weight_SDTK = self.parameters["weight"]
        squares = torch.linalg.vecdot(weight_SDTK, weight_SDTK, dim=1).unsqueeze(1)
        self._inverse_norm_S1TK = squares.clamp_(min=MIN_NORM**2).rsqrt_()
        flat = torch.bmm(inputs_SBI, weight_SDTK.flatten(2))
        return flat.view(*flat.shape[:2], *weight_SDTK.shape[2:]).mul_(self.scale_S1T1 * self._inverse_norm_S1TK)

    def accumulate(
        self,
        into: dict[str, Tensor],
        inputs_SBI: Tensor,
        logits_SBTK: Tensor,
        grad_SBTK: Tensor,
        keep: float,
        decay: Tensor | None,
    ) -> None:
        """With u = W / |W|: `dL/dW = (s F^T g - u sum_b(g z)) / |W|`. See `StackedHead.accumulate`."""
        inverse = self._inverse_norm_S1TK
        along = (grad_SBTK * logits_SBTK).sum(dim=1, keepdim=True) * inverse.square()
        through = grad_SBTK * (self.scale_S1T1 * inverse)
        into["weight"].flatten(2).baddbmm_(inputs_SBI.mT, through.flatten(2), beta=keep)
        into["weight"].addcmul_(self.parameters["weight"], -along if decay is None else decay - along)

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """See `StackedHead.state`."""
        return {"weight": _rows(self.parameters["weight"][seed, :, lane])}


@HEADS.register
class Cosine(HeadSpec):
    """`z_k = s cos(W_k, f)`: no bias, independent of the norms of weight rows and features.

    Source: Liu et al. 2019, Large-Scale Long-Tailed Recognition in an Open World (OLTR); paper, Table 1.
    """

    affine: ClassVar[bool] = True

    kind: Literal["cosine"] = "cosine"
    scale: Annotated[float, BATCHED, Field(gt=0, description="factor s = 1/temperature of the cosines, > 0")] = 30.0
    squash: Annotated[
        bool, Field(description="multiply the cosines by |f| / (1 + |f|), which keeps part of the feature norm (OLTR)")
    ] = False

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """A `CosineModule` with the normalised rows of `start`, without its bias."""
        from lt_train.methods.heads._modules import CosineModule

        return CosineModule(start[0], self.scale, self.squash)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.num_parameters`."""
        return num_classes * feature_dim

    def stack(
        self, modules_ST: Sequence[Sequence[CosineModule]], lanes: Mapping[str, Tensor], device: str
    ) -> StackedHead:
        """See `HeadSpec.stack`."""
        weight = torch.stack([torch.stack([head.weight.detach().T for head in row], dim=1) for row in modules_ST])
        return StackedCosine(weight.to(device).contiguous(), lanes["scale"])

    def inputs(self, features: Tensor, start: Classifier | None) -> Tensor:
        """The normalised features, `[..., D]`."""
        norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        directions: Tensor = features / (norm + 1.0 if self.squash else norm.clamp(min=MIN_NORM))
        return directions

    def logit_scale(self, lanes: Mapping[str, Tensor]) -> Tensor | float:
        """The scale s."""
        return lanes["scale"]
