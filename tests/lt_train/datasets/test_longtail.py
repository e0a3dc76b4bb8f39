"""The cut and the hold-out: published counts, exact indices, and notes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_train.core.errors import DataError
from lt_train.datasets.longtail import class_sizes, cut_longtail, hold_out, hold_out_fraction
from lt_train.metrics import split_masks


@pytest.mark.parametrize(
    ("ratio", "total", "splits"),
    [(100, 10847, [100, 35, 35, 30]), (50, 12608, [100, 41, 41, 18]), (10, 19573, [100, 69, 31, 0])],
)
def test_cifar100_lt_has_the_published_counts(ratio: float, total: int, splits: list[int]) -> None:
    sizes = class_sizes(500, ratio, 100)
    assert sum(sizes) == total
    assert split_masks(torch.tensor(sizes)).sum(dim=1).tolist() == splits


@given(st.integers(100, 6000), st.floats(1, 100), st.integers(1, 200))
def test_sizes_fall_from_n_max_to_n_max_over_ratio(n_max: int, ratio: float, num_classes: int) -> None:
    sizes = class_sizes(n_max, ratio, num_classes)
    assert sizes[0] == n_max
    assert sizes == sorted(sizes, reverse=True)
    if num_classes > 1:
        assert abs(sizes[-1] - n_max / ratio) <= 1


def test_a_ratio_that_empties_a_class_names_it() -> None:
    with pytest.raises(DataError, match=r"class 8 gets none from n_max 50 with imbalance_ratio 100"):
        class_sizes(50, 100, 10)


def test_the_cut_takes_the_first_images_of_every_class() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 1, 1])
    chosen, left_over = cut_longtail(labels, [2, 1])
    assert chosen.tolist() == [1, 2, 0]
    assert left_over.tolist() == [4, 3, 5, 6]


def test_a_shuffled_cut_depends_on_its_seed_alone() -> None:
    labels = torch.arange(1000) % 10
    cuts = [cut_longtail(labels, [30] * 10, seed)[0] for seed in (1, 1, 2, None)]
    assert torch.equal(cuts[0], cuts[1])
    assert not torch.equal(cuts[0], cuts[2])
    assert not torch.equal(cuts[0], cuts[3])
    assert torch.bincount(labels[cuts[0]]).tolist() == [30] * 10


@pytest.mark.parametrize(
    ("labels", "match"),
    [([0, 0, 1], "class 1 needs 2 training images and has only 1 images"), ([0, 0], "class 1 .* has no image")],
)
def test_a_class_with_too_few_images_is_named(labels: list[int], match: str) -> None:
    with pytest.raises(DataError, match=match):
        cut_longtail(torch.tensor(labels), [2, 2])


def test_validation_comes_from_the_left_over_first() -> None:
    labels = torch.arange(100) % 2
    chosen, left_over = cut_longtail(labels, [30, 10])
    train, val, notes = hold_out(labels, chosen, left_over, 20)
    assert val is not None
    assert torch.equal(train, chosen)
    assert torch.bincount(labels[val]).tolist() == [20, 20]
    assert set(val.tolist()) <= set(left_over.tolist())
    assert notes == ()


def test_missing_validation_images_come_from_training_with_a_note() -> None:
    labels = torch.arange(100) % 2
    chosen, left_over = cut_longtail(labels, [48, 10])  # two of class 0 are left over
    train, val, notes = hold_out(labels, chosen, left_over, 8)
    assert val is not None
    assert torch.bincount(labels[train]).tolist() == [42, 10]
    assert torch.bincount(labels[val]).tolist() == [8, 8]
    assert not set(train.tolist()) & set(val.tolist())
    assert len(notes) == 1
    assert "class 0: 6 of 48" in notes[0]
    assert "52 images instead of 58" in notes[0]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(1, 30))
def test_at_most_a_fifth_is_held_out_and_never_the_last(sizes: list[int], val_per_class: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen, left_over = cut_longtail(labels, sizes)  # nothing is left over
    train, val, notes = hold_out(labels, chosen, left_over, val_per_class)
    counts = torch.bincount(labels[train], minlength=len(sizes))
    held = torch.tensor(sizes) - counts
    assert held.tolist() == [min(val_per_class, size // 5) for size in sizes]
    assert int(counts.min()) >= 1
    assert (val is None) == (int(held.sum()) == 0)
    assert notes or all(taken == val_per_class for taken in held)


def test_no_validation_keeps_the_published_training_set() -> None:
    labels = torch.arange(20) % 2
    chosen, left_over = cut_longtail(labels, [10, 10])
    train, val, notes = hold_out(labels, chosen, left_over, 0)
    assert torch.equal(train, chosen)
    assert val is None
    assert notes == ()


def test_a_fraction_is_held_out_of_every_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 25)
    train, val, notes = hold_out_fraction(labels, 0.2)
    assert val is not None
    assert torch.bincount(labels[val]).tolist() == [2, 1, 5]
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(39))
    assert "8 of 39 training images were held out" in notes[0]
    assert hold_out_fraction(labels, 0.0)[1:] == (None, ())


def test_a_fraction_takes_one_of_every_class_but_never_the_last() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] + [3])
    train, val, notes = hold_out_fraction(labels, 0.2)
    assert val is not None
    assert torch.bincount(labels[val], minlength=4).tolist() == [2, 1, 0, 0]
    assert torch.bincount(labels[train]).tolist() == [8, 1, 1, 1]
    assert notes[0].endswith("because they have only one image: class 2; class 3")
    assert torch.bincount(labels[hold_out_fraction(labels, 1 - 1e-16)[0]]).tolist() == [1, 1, 1, 1]


def test_a_fraction_of_classes_with_one_image_gives_no_validation_set() -> None:
    train, val, notes = hold_out_fraction(torch.arange(3), 0.5)
    assert train.tolist() == [0, 1, 2]
    assert val is None
    assert "none could be held out: every class has one training image" in notes[0]
