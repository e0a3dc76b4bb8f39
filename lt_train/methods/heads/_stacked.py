"""A stack of any modules, batched by `torch.func`; the default of `HeadSpec.stack`.

Shapes: S seeds, B batch, T lanes, K classes, D features, C values of one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lt_train.methods.heads.base import StackedHead

__all__ = ["StackedModules"]


class StackedModules(StackedHead):
    """S x T modules of one architecture: one batched call per step, gradients from autograd.

    Every parameter is `[S, 1, T, C]`, with its values flattened. A number that may differ by lane must be a buffer of
    the module: Python attributes are those of the first module. The modules' `forward` must be deterministic, must not
    change buffers (no dropout, no batch norm) and must not branch on values of tensors.

    Args:
        modules_ST: modules by seed and lane.
        device: of the stacked tensors.
    """

    def __init__(self, modules_ST: Sequence[Sequence[nn.Module]], device: str) -> None:
        modules = [module for row in modules_ST for module in row]
        self.shape = len(modules_ST), len(modules_ST[0])
        self.module = modules[0]
        self.saved = list(self.module.state_dict())
        self.shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        self.parameters = {
            name: torch.stack([module.get_parameter(name).detach().flatten() for module in modules])
            .view(self.shape[0], 1, self.shape[1], -1)
            .to(device)
            for name in self.shapes
        }
        self.buffers: dict[str, Tensor] = {}  # [S, T, ...]
        self.shared: dict[str, Tensor] = {}  # such as a frozen classifier
        for name, buffer in self.module.named_buffers():
            own = [module.get_buffer(name) for module in modules]
            if all(torch.equal(buffer, other) for other in own):
                self.shared[name] = buffer.to(device)
            else:
                self.buffers[name] = torch.stack(own).view(*self.shape, *buffer.shape).to(device)

    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """See `StackedHead.logits`."""
        return self._apply(self.parameters, inputs_SBI)

    def accumulate(
        self,
        into: dict[str, Tensor],
        inputs_SBI: Tensor,
        logits_SBTK: Tensor,
        grad_SBTK: Tensor,
        keep: float,
        decay: Tensor | None,
    ) -> None:
        """See `StackedHead.accumulate`. The logits are computed again, with a graph."""
        with torch.enable_grad():
            leaves = {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}
            # As a scalar: torch imports sympy, which takes a second, for the gradient of a tensor.
            product = (self._apply(leaves, inputs_SBI) * grad_SBTK).sum()
            gradients = torch.autograd.grad(product, list(leaves.values()))
        for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True):
            into[name].mul_(keep).add_(gradient)
            if decay is not None:
                into[name].addcmul_(parameter, decay)

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """See `StackedHead.state`."""
        own = {name: values[seed, 0, lane].view(self.shapes[name]) for name, values in self.parameters.items()}
        own |= {name: values[seed, lane] for name, values in self.buffers.items()}
        copies = {name: tensor.clone().cpu() for name, tensor in own.items()}
        shared = {name: buffer.cpu() for name, buffer in self.shared.items()}
        return {name: tensor for name, tensor in {**copies, **shared}.items() if name in self.saved}

    def _apply(self, parameters: Mapping[str, Tensor], inputs_SBI: Tensor) -> Tensor:
        """Logits `[S, B, T, K]`."""
        own = {name: values.view(*self.shape, *self.shapes[name]) for name, values in parameters.items()}

        def one(tensors: dict[str, Tensor], inputs_BI: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.module, (tensors, self.shared), (inputs_BI,))
            return logits

        lanes = vmap(one, in_dims=(0, None), out_dims=1)
        logits_SBTK: Tensor = vmap(lanes)({**own, **self.buffers}, inputs_SBI)
        return logits_SBTK
