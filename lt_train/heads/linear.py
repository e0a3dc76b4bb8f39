"""The linear head, stacked: the classifiers of T lanes x S seeds as one tensor, trained by hand-written gradients.

The weights of all lanes of one seed stand side by side, so that a step is one matrix product a seed, forward and
back. Knows torch only; which loss is trained, and how it is optimised, is the engine's business.

Shapes: S seeds, B batch, T lanes, K classes, D features, A test views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LinearHead"]


class LinearHead:
    """`z = f W + b` for every lane.

    Attributes:
        parameters: `weight [S, D, T, K]` and `bias [S, 1, T, K]`, changed in place by the engine.
    """

    def __init__(self, weight_SDTK: Tensor, bias_S1TK: Tensor) -> None:
        self.parameters = {"weight": weight_SDTK, "bias": bias_S1TK}

    @classmethod
    def stack(cls, heads_ST: Sequence[Sequence[tuple[Tensor, Tensor]]], device: str) -> LinearHead:
        """Stack single heads, each `(weight [K, D], bias [K])`, given by seed and lane."""
        weight = torch.stack([torch.stack([weight.T for weight, _ in lanes], dim=1) for lanes in heads_ST])
        bias = torch.stack([torch.stack([bias for _, bias in lanes])[None] for lanes in heads_ST])
        return cls(weight.to(device).contiguous(), bias.to(device).contiguous())

    def unstack(self, seed: int, lane: int) -> tuple[Tensor, Tensor]:
        """One lane's `(weight [K, D], bias [K])` as CPU copies."""
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        return weight[seed, :, lane].T.contiguous().cpu(), bias[seed, 0, lane].clone().cpu()

    def logits(self, features_SBD: Tensor) -> Tensor:
        """Logits `[S, B, T, K]` of features `[S, B, D]`."""
        weight_SDTK, bias_S1TK = self.parameters["weight"], self.parameters["bias"]
        flat = torch.baddbmm(bias_S1TK.flatten(2), features_SBD, weight_SDTK.flatten(2))
        return flat.view(*flat.shape[:2], *weight_SDTK.shape[2:])

    def accumulate(
        self, into: dict[str, Tensor], features_SBD: Tensor, grad_SBTK: Tensor, *, keep: float, scale: float
    ) -> None:
        """`into = keep * into + scale * gradient` for every parameter, given the loss's gradient by the logits.

        `keep` folds the momentum into the product itself, which saves a pass over memory.
        """
        into["weight"].flatten(2).baddbmm_(features_SBD.mT, grad_SBTK.flatten(2), beta=keep, alpha=scale)
        into["bias"].mul_(keep).add_(grad_SBTK.sum(dim=1, keepdim=True), alpha=scale)

    @staticmethod
    def evaluation_features(features_AND: Tensor) -> Tensor:
        """Float `[N, D]` whose logits are the mean of the logits of all test views: exact, as the head is linear."""
        return features_AND.mean(dim=0)
