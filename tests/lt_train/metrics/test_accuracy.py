"""Splits, correct predictions and accuracies: by hand, against plain loops, and as identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_train.datasets.longtail import class_sizes
from lt_train.metrics import SPLITS, correct_per_class, split_accuracy, split_masks, top1_correct

# Splits


def test_split_boundaries() -> None:
    masks = split_masks(torch.tensor([101, 100, 20, 19]))
    assert SPLITS == ("all", "many", "medium", "few")
    expected = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert masks.int().tolist() == expected


@pytest.mark.parametrize(
    ("ratio", "sizes", "images"), [(100, [35, 35, 30], 10847), (50, [41, 41, 18], 12608), (10, [69, 31, 0], 19573)]
)
def test_splits_of_cifar100_lt(ratio: float, sizes: list[int], images: int) -> None:
    counts = torch.tensor(class_sizes(500, ratio, 100))
    assert split_masks(counts).sum(dim=1).tolist() == [100, *sizes]
    assert int(counts.sum()) == images


# Accuracy


def test_micro_and_macro_accuracy_by_hand() -> None:
    masks = split_masks(torch.tensor([200, 150, 50, 5]))
    correct, total = torch.tensor([8.0, 1.0, 3.0, 0.0]), torch.tensor([10, 2, 4, 4])
    micro = split_accuracy(correct, total, masks, "micro")
    macro = split_accuracy(correct, total, masks, "macro")
    torch.testing.assert_close(micro, torch.tensor([12 / 20, 9 / 12, 3 / 4, 0.0]))
    torch.testing.assert_close(macro, torch.tensor([(0.8 + 0.5 + 0.75) / 4, 0.65, 0.75, 0.0]))


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_an_empty_split_is_nan_and_never_zero(average: str) -> None:
    no_few = split_masks(torch.tensor([200, 50]))
    accuracy = split_accuracy(torch.tensor([1.0, 1.0]), torch.tensor([2, 2]), no_few, average)  # type: ignore[arg-type]
    assert accuracy[:3].tolist() == [0.5, 0.5, 0.5]
    assert bool(accuracy[3].isnan())
    # Few has a class, but no image of it: it is empty too, and "all" leaves the class out.
    no_image = split_masks(torch.tensor([200, 5]))
    accuracy = split_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([2, 0]), no_image, average)  # type: ignore[arg-type]
    assert accuracy[:2].tolist() == [0.5, 0.5]
    assert accuracy[2:].isnan().tolist() == [True, True]


def test_accuracy_keeps_lane_axes() -> None:
    masks = split_masks(torch.tensor([200, 50, 5]))
    correct = torch.tensor([[[1.0, 2, 3], [0, 0, 0]]])
    accuracy = split_accuracy(correct, torch.tensor([4, 4, 4]), masks)
    assert accuracy.shape == (1, 2, 4)
    assert accuracy.tolist() == [[[0.5, 0.25, 0.5, 0.75], [0.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_accuracy_depends_on_neither_the_order_of_classes_nor_the_lanes_beside_it(average: str) -> None:
    """Ties between epochs must hold to the last bit, because the best epoch is selected by this accuracy."""
    stream = torch.Generator().manual_seed(0)
    masks = split_masks(torch.tensor([200] * 16))
    right, total = torch.randint(0, 13, (16,), generator=stream).float(), torch.full((16,), 12)
    lanes = torch.stack([right[torch.randperm(16, generator=stream)] for _ in range(60)])
    together = split_accuracy(lanes, total, masks, average)  # type: ignore[arg-type]
    alone = torch.stack([split_accuracy(lane, total, masks, average) for lane in lanes])  # type: ignore[arg-type]
    assert together.dtype == torch.float32
    assert len(together[:, 0].unique()) == 1
    assert torch.equal(together[:, :2], alone[:, :2])


# Correct predictions


def slow_correct(logits: list[float], label: int) -> bool:
    """The true logit is larger than every other one; comparisons with NaN are false."""
    return all(logits[label] > other for k, other in enumerate(logits) if k != label)


numbers = st.one_of(st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan]), st.floats(-4, 4, width=32))


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=5), data=st.data())
def test_correct_means_strictly_the_largest_logit(rows: list[list[float]], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    found = top1_correct(torch.tensor(rows), torch.tensor(labels))
    assert found.tolist() == [slow_correct(row, label) for row, label in zip(rows, labels, strict=True)]


def test_without_ties_it_equals_argmax() -> None:
    stream = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 3, 7, generator=stream), torch.randint(7, (200,), generator=stream)
    assert torch.equal(top1_correct(logits, labels.unsqueeze(-1)), logits.argmax(dim=-1) == labels.unsqueeze(-1))


def test_a_tie_is_wrong_whatever_the_order_of_classes() -> None:
    """With argmax, a head whose logits are all equal would have the accuracy of class 0."""
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 1.0, 1.0]])
    assert top1_correct(logits, torch.tensor([0, 1, 0])).tolist() == [False, False, True]
    assert not top1_correct(torch.zeros(5, 3), torch.arange(5) % 3).any()


def test_nan_and_equal_infinities_are_wrong() -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[nan, 0.0], [1.0, nan], [nan, nan], [inf, inf], [inf, 0.0], [0.0, -inf]])
    assert top1_correct(logits, torch.zeros(6, dtype=torch.int64)).tolist() == [False, False, False, False, True, True]


def test_labels_broadcast_and_logits_are_not_changed() -> None:
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    before, labels = logits.clone(), torch.tensor([0, 1, 2, 3, 0])
    found = top1_correct(logits, labels.view(1, 5, 1))
    assert found.shape == (2, 5, 3)
    for s in range(2):
        for t in range(3):
            assert torch.equal(found[s, :, t], top1_correct(logits[s, :, t], labels))
    assert torch.equal(logits, before)


def test_correct_per_class_by_hand_with_lanes_and_ties() -> None:
    # Image by image; the second lane of each image is a tie between classes 0 and 2, which neither wins.
    logits = torch.tensor([[[3.0, 1, 2], [1, 0, 1]], [[0.0, 5, 1], [1, 0, 1]], [[0.0, 1, 5], [1, 0, 1]]])
    correct = correct_per_class(logits, torch.tensor([0, 1, 2]), 3)
    assert correct.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert correct_per_class(logits[:, 0], torch.tensor([0, 0, 2]), 4).tolist() == [1, 0, 1, 0]
    two_axes = correct_per_class(logits.unsqueeze(1).repeat(1, 4, 1, 1), torch.tensor([0, 1, 2]), 3)
    assert two_axes.shape == (4, 2, 3)
