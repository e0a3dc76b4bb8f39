"""The head with a hidden layer: `z = W f + b + V relu(U f + c)`.

Shapes: K classes, D features, H hidden units.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lt_train.core.fields import STATIC
from lt_train.core.imports import nn, torch
from lt_train.core.seeding import generator
from lt_train.methods.heads.base import HEADS, Classifier, HeadSpec

__all__ = ["MLP"]


@HEADS.register
class MLP(HeadSpec):
    """A linear classifier plus a hidden layer, `z = W f + b + V relu(U f + c)`; all of them are trained.

    W and b start as every head does, from the stage-1 head or from random values. V starts at 0, so a head that starts
    from the checkpoint starts with its logits (zero-initialised residual branches: Goyal et al. 2017, Accurate, Large
    Minibatch SGD, section 5.1). U and c start from random values of the run's seed.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[int, STATIC, Field(ge=1, description="number H of hidden units, >= 1")] = 128

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """An `MLPModule`; U and c are uniform in +-1/sqrt(D), as in torch.nn.Linear."""
        from lt_train.methods.heads._modules import MLPModule

        dim = start[0].shape[1]
        stream, bound = generator("mlp-hidden", seed), dim**-0.5
        weight = torch.empty(self.hidden, dim).uniform_(-bound, bound, generator=stream)
        bias = torch.empty(self.hidden).uniform_(-bound, bound, generator=stream)
        return MLPModule(start, (weight, bias))

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """See `HeadSpec.num_parameters`."""
        return num_classes * (feature_dim + 1) + self.hidden * (feature_dim + 1) + num_classes * self.hidden

    def num_activations(self, num_classes: int, feature_dim: int) -> int:
        """The hidden layer before and after relu, both terms of the logits, and the logits."""
        return 2 * self.hidden + 2 * num_classes
