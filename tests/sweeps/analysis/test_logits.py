"""Logits of heads on the test images: histograms, the rescued image, a sample of a large test set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lt_train.features.bank import EvalSet
from sweeps.analysis import logits
from sweeps.analysis.logits import HeadLogits, head_logits, histograms, rescued_image


def some_logits(images: int = 200, classes: int = 7) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(3)
    return torch.randn(images, classes, generator=stream), torch.arange(images) % classes


def test_histograms_count_every_logit_once_and_their_means_lie_a_loma_apart() -> None:
    values, labels = some_logits()
    group = torch.tensor([True, False, True, False, False, False, False])
    (found,) = histograms(values, labels, [group])
    own = torch.nn.functional.one_hot(labels, 7).bool()
    for density, mean, chosen in (
        (found.true, found.true_mean, values[own & group]),
        (found.other, found.other_mean, values[~own & group]),
    ):
        expected = torch.histc(chosen, len(density), float(found.edges[0]), float(found.edges[-1]))
        width = float(found.edges[1] - found.edges[0])
        assert torch.allclose(density.float() * width, expected / len(chosen), atol=1e-6)
        assert mean == pytest.approx(float(chosen.mean()), abs=1e-5)


def test_the_rescued_image_has_the_largest_gain_in_margin_at_any_scale() -> None:
    labels = torch.tensor([0, 1, 2])
    before = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    after = torch.tensor([[2.0, 1.9, 0.0], [0.0, 30.0, 0.0], [0.0, 0.0, 1.0]])
    both = HeadLogits(torch.tensor([10, 11, 12]), labels, (before, after), 20)
    found = rescued_image(both, torch.ones(3, dtype=torch.bool))
    assert found is not None
    assert (found.index, found.label) == (11, 1)
    assert torch.equal(found.after, after[1])
    only_the_first = rescued_image(both, torch.tensor([True, False, True]))
    assert only_the_first is not None
    assert only_the_first.index == 10
    assert rescued_image(both, torch.tensor([False, False, True])) is None


def test_logits_are_the_mean_over_test_views() -> None:
    head = nn.Linear(4, 3)
    test = EvalSet(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1]))
    found = head_logits([head], test, 3)
    with torch.inference_mode():
        assert torch.allclose(found.logits[0], head(test.features.mean(dim=0)), atol=1e-6)
    assert found.images.tolist() == list(range(5))


def test_the_sample_of_a_very_large_test_set_is_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "MOST_LOGITS", 30)
    test = EvalSet(torch.arange(80.0).reshape(1, 20, 4), torch.arange(20) % 3)
    first, again = (head_logits([nn.Linear(4, 3)], test, 3) for _ in range(2))
    assert len(first.images) == 10
    assert first.total == 20
    assert first.images.tolist() == again.images.tolist() == sorted(set(first.images.tolist()))
    assert torch.equal(first.labels, test.labels[first.images])
