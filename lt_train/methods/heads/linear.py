"""The linear head, `z = W f + b`. A stack concatenates the weights of all lanes of a seed into one matrix.

Shapes: S seeds, B batch, T lanes, K classes, D features, I inputs (here the features).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from lt_train.core.lazy import nn, torch
from lt_train.methods.heads.base import Classifier, HeadSpec, StackedHead

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Linear", "StackedLinear"]


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
        return {"weight": weight[seed, :, lane].T.contiguous().cpu(), "bias": bias[seed, 0, lane].clone().cpu()}

    def row_norms(self) -> tuple[Tensor, Tensor]:
        """See `StackedHead.row_norms`."""
        return self.parameters["weight"].square().sum(dim=1, keepdim=True).sqrt(), self.parameters["bias"]


class Linear(HeadSpec):
    """One weight row and one bias per class, `z = W f + b`."""

    has_rows: ClassVar[bool] = True

    kind: Literal["linear"] = "linear"

    def module(self, start: Classifier) -> nn.Module:
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
