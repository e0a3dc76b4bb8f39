"""The cosine head depends on directions only. Stacks are tested in test_every_head.py."""

import pytest
import torch

from lt_train.methods.heads.linear import Cosine

START = (torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([5.0, 6.0]))


def test_by_hand() -> None:
    # Rows are (0.6, 0.8) and (0, -1); the feature's direction is (0.8, 0.6). The bias is dropped.
    module = Cosine(scale=10.0).module(START)
    assert module(torch.tensor([4.0, 3.0])).tolist() == pytest.approx([9.6, -6.0])
    # OLTR's squashing keeps |f| / (1 + |f|) = 5/6 of it.
    squashed = Cosine(scale=10.0, squash=True).module(START)
    assert squashed(torch.tensor([4.0, 3.0])).tolist() == pytest.approx([8.0, -5.0])


def test_rows_start_as_unit_directions() -> None:
    (weight,) = Cosine().module(START).parameters()
    torch.testing.assert_close(weight.detach(), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_the_norms_of_rows_and_features_do_not_matter(factor: float) -> None:
    features = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    module = Cosine().module(START)
    expected = module(features).detach()
    with torch.no_grad():
        module.get_parameter("weight").mul_(torch.tensor([[factor], [1.0]]))
    torch.testing.assert_close(module(factor * features), expected)
    assert float(expected.abs().max()) <= 30.0


@pytest.mark.parametrize("squash", [False, True])
def test_a_feature_of_zeros_has_logits_0(squash: bool) -> None:
    spec = Cosine(squash=squash)
    zeros = torch.zeros(1, 3, 2)
    assert spec.module(START)(zeros).tolist() == [[[0.0, 0.0]] * 3]
    stacked = spec.stack([[spec.module(START)]], {"scale": torch.full((1, 1, 1), 30.0)}, "cpu")
    assert stacked.logits(spec.inputs(zeros, None)).tolist() == [[[[0.0, 0.0]]] * 3]


def test_a_row_of_zeros_has_logit_0() -> None:
    module = Cosine().module((torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2)))
    stacked = Cosine().stack([[module]], {"scale": torch.full((1, 1, 1), 30.0)}, "cpu")
    features = torch.tensor([[[4.0, 3.0]]])
    assert module(features).tolist()[0][0] == pytest.approx([28.8, 0.0])
    assert stacked.logits(Cosine().inputs(features, None)).tolist()[0][0][0] == pytest.approx([28.8, 0.0])


def test_its_margins_are_in_cosines() -> None:
    scale = torch.full((2, 1, 3), 16.0)
    assert Cosine().logit_scale({"scale": scale}) is scale
