"""Every head conforms: equal logits, gradients of autograd, states that round-trip (`lt_train.testing.check_head`).

The heads are those of the registry, with one variant per value of each option, and one from outside with the default
stack.
"""

import typing
from collections.abc import Mapping

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from lt_train.core.fields import BATCHED
from lt_train.methods.heads.base import HEADS, Classifier, HeadSpec
from lt_train.testing import check_head

pytestmark = pytest.mark.usefixtures("own_kinds")


class Prototypes(HeadSpec):
    """`z_k = s g W_k f - s |f - c_k|^2` with buffers that differ by lane (s) and that do not (W), and a scalar g."""

    kind: typing.Literal["prototypes"] = "prototypes"
    scale: typing.Annotated[float, BATCHED, Field(gt=0, description="s")] = 2.0

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        return PrototypesModule(start[0], self.scale)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        return num_classes * feature_dim + 1

    def state_shape(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        classes, dim = state["centers"].shape
        return classes, dim


class PrototypesModule(nn.Module):
    """See `Prototypes`."""

    scale: Tensor
    frozen: Tensor

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.centers, self.gate = nn.Parameter(weight.clone()), nn.Parameter(torch.ones(()))
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("frozen", torch.ones_like(weight), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        far = (features.unsqueeze(-2) - self.centers).square().sum(dim=-1)
        return self.scale * (self.gate * features @ self.frozen.T - far)


def variants() -> list[typing.Any]:
    """Every head with its defaults, and with every value of each of its options."""
    found = []
    for kind, spec in HEADS.kinds().items():
        found.append(pytest.param(spec(), id=kind))
        for name, field in spec.model_fields.items():
            if field.annotation is bool:
                found.append(pytest.param(spec(**{name: not field.default}), id=f"{kind}-{name}"))
    return [*found, pytest.param(Prototypes(), id="from outside")]


every_head = pytest.mark.parametrize("spec", variants())


@every_head
def test_it_conforms(spec: HeadSpec) -> None:
    check_head(spec)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_head
def test_it_starts_with_the_logits_of_stage_1_unless_it_normalises(spec: HeadSpec) -> None:
    start, features = (draw(4, 6, seed=7), draw(4, seed=8)), draw(20, 6, seed=0)
    expected = nn.functional.linear(features, *start)
    found = spec.module(start).double()(features)
    directions = {name for name, field in type(spec).model_fields.items() if name == "scale"}
    assert torch.allclose(found, expected, atol=1e-5) == (not directions)
