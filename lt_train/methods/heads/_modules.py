"""Torch modules of heads that torch does not have, and of heads with a post-hoc adjustment.

Shapes: K classes, D features, `...` any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_train.methods.heads.base import Classifier
from lt_train.methods.heads.fold import as_linear
from lt_train.methods.heads.linear import MIN_NORM

__all__ = ["Adjusted", "AlignedModule", "CosineModule", "MLPModule", "ScaledModule"]


class CosineModule(nn.Module):
    """`weight [K, D]`, no bias; rows start as the normalised rows of the classifier."""

    def __init__(self, weight: Tensor, scale: float, squash: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.functional.normalize(weight.clone(), dim=-1, eps=MIN_NORM))
        self.scale, self.squash = scale, squash

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., K]` of features `[..., D]`."""
        norm = features.norm(dim=-1, keepdim=True)
        directions = features / (1.0 + norm) if self.squash else features / norm.clamp(min=MIN_NORM)
        logits: Tensor = self.scale * directions @ nn.functional.normalize(self.weight, dim=-1, eps=MIN_NORM).T
        return logits


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

    def linear(self) -> Classifier:
        """The equal linear classifier, with the factors multiplied into rows and biases."""
        return self.scale.unsqueeze(-1) * self.weight, self.scale * self.bias


class AlignedModule(nn.Module):
    """`z + g (alpha_k z + beta_k - z)` with the gate g = sigmoid(v f + v_0) and z the frozen classifier's logits.

    `alpha [K]`, `beta [K]`, `gate [D]` and `gate_bias []` are trained. They start from 1, 0, 0 and 0, which gives the
    logits of the classifier.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", bias.clone())
        self.alpha, self.beta = nn.Parameter(torch.ones_like(bias)), nn.Parameter(torch.zeros_like(bias))
        self.gate, self.gate_bias = nn.Parameter(torch.zeros_like(weight[0])), nn.Parameter(torch.zeros_like(bias[0]))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., K]` of features `[..., D]`."""
        logits = nn.functional.linear(features, self.weight, self.bias)
        confidence = torch.sigmoid(features @ self.gate + self.gate_bias).unsqueeze(-1)
        return confidence * (self.alpha * logits + self.beta) + (1.0 - confidence) * logits


class MLPModule(nn.Module):
    """`W f + b + V relu(U f + c)`; V starts at 0.

    W, b, U, c and V are `weight [K, D]`, `bias [K]`, `hidden_weight [H, D]`, `hidden_bias [H]` and `out [K, H]`.
    """

    def __init__(self, linear: Classifier, hidden: Classifier) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(tensor.clone()) for tensor in linear)
        self.hidden_weight, self.hidden_bias = (nn.Parameter(tensor.clone()) for tensor in hidden)
        self.out = nn.Parameter(linear[0].new_zeros(len(linear[0]), len(hidden[0])))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., K]` of features `[..., D]`."""
        hidden = nn.functional.linear(features, self.hidden_weight, self.hidden_bias).relu()
        return nn.functional.linear(features, self.weight, self.bias) + nn.functional.linear(hidden, self.out)


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

    def linear(self) -> Classifier | None:
        """The equal linear classifier; None if the head has none."""
        if (inner := as_linear(self.head)) is None:
            return None
        weight, bias = inner
        return self.scale.unsqueeze(-1) * weight, self.scale * bias + self.offset
