"""Trained classifiers as one linear layer: equal logits, or None where there is no such layer."""

import pytest
import torch
from torch import Tensor, nn

from lt_train.methods.base import METHODS
from lt_train.methods.heads.fold import as_linear

CLASSES, DIM = 4, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


HEADS = {
    "linear": {"weight": draw(CLASSES, DIM), "bias": draw(CLASSES)},
    "lws": {"weight": draw(CLASSES, DIM), "bias": draw(CLASSES), "scale": draw(CLASSES, seed=1)},
    "cosine": {"weight": draw(CLASSES, DIM)},
    "disalign": {
        **{"weight": draw(CLASSES, DIM), "bias": draw(CLASSES), "gate": draw(DIM), "gate_bias": draw(1)[0]},
        **{"alpha": draw(CLASSES, seed=2), "beta": draw(CLASSES, seed=3)},
    },
}


def classifier(head: str, adjusted: bool) -> nn.Module:
    state = HEADS[head]
    if adjusted:
        state = {f"head.{name}": tensor for name, tensor in state.items()}
        state |= {"scale": draw(CLASSES, seed=4), "offset": draw(CLASSES, seed=5)}
    post_hoc = {"kind": "logit_adjust"} if adjusted else None
    return METHODS.parse({"kind": "ce", "head": {"kind": head}, "post_hoc": post_hoc}).classifier(state)


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_heads_are_folded_where_one_layer_computes_the_same(head: str, adjusted: bool) -> None:
    module, features = classifier(head, adjusted), draw(20, DIM, seed=6)
    found = as_linear(module)
    if head in ("cosine", "disalign"):
        assert found is None
        return
    assert found is not None
    logits = nn.functional.linear(features, *found)
    torch.testing.assert_close(logits, module(features).detach(), rtol=1e-5, atol=1e-5)
    if (head, adjusted) == ("linear", False):
        assert torch.equal(logits, module(features))


def test_a_dropped_bias_is_folded_to_exactly_zero() -> None:
    """As tau-normalisation drops it, so that a layer without a bias can hold the head."""
    state = {f"head.{name}": tensor for name, tensor in HEADS["linear"].items()}
    scale = state["head.weight"].norm(dim=-1).pow(-0.7)
    state |= {"scale": scale, "offset": -scale * state["head.bias"]}
    found = as_linear(METHODS.parse({"kind": "tau_norm"}).classifier(state))
    assert found is not None
    assert not found[1].any()


def test_a_module_from_outside_states_its_layer_itself() -> None:
    class Doubled(nn.Linear):
        pass

    class Own(nn.Module):
        def linear(self) -> tuple[Tensor, Tensor]:
            return HEADS["linear"]["weight"], HEADS["linear"]["bias"]

    assert as_linear(Own()) is not None
    assert as_linear(nn.Sequential(nn.Linear(DIM, CLASSES))) is None
    assert as_linear(nn.Linear(DIM, CLASSES, bias=False))[1].tolist() == [0.0] * CLASSES
