"""Every head conforms: equal logits, gradients of autograd, states that round-trip (`lt_train.testing.check_head`).

The heads are those of the registry, with one variant per value of each option.
"""

import typing

import pytest
import torch
from torch import Tensor, nn

from lt_train.methods.heads.base import HEADS, HeadSpec
from lt_train.testing import check_head


def variants() -> list[typing.Any]:
    """Every head with its defaults, and with every value of each of its options."""
    found = []
    for kind, spec in HEADS.kinds().items():
        found.append(pytest.param(spec(), id=kind))
        for name, field in spec.model_fields.items():
            if field.annotation is bool:
                found.append(pytest.param(spec(**{name: not field.default}), id=f"{kind}-{name}"))
    return found


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
