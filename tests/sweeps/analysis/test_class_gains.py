"""Classes gained and lost: by hand, by the book, and where there is nothing to tell."""

from __future__ import annotations

import numpy as np
import pytest

from sweeps.analysis.class_gains import beyond_luck, class_gains

IMAGES = np.array([10.0, 10.0, 10.0])


def test_a_gain_in_every_seed_alike_is_as_sure_as_the_rounding_of_images_allows() -> None:
    theirs = np.tile([0.5, 0.5, 0.5], (5, 1))
    found = class_gains(theirs + np.array([0.1, 0.4, 0.0]), theirs, IMAGES, paired=True)
    assert found.gain == pytest.approx([0.1, 0.4, 0.0])
    assert found.p_value is not None
    # One image of ten over five seeds: t = 1 / sqrt(1 / 6 / 5) with 4 degrees of freedom.
    assert found.p_value == pytest.approx([0.00542, 0.0000257, 1.0], rel=0.01)
    assert found.sure.tolist() == [True, True, False]


def test_one_image_in_two_seeds_is_not_sure() -> None:
    theirs = np.tile([0.5, 0.5, 0.5], (2, 1))
    found = class_gains(theirs + np.array([0.1, 0.0, 0.0]), theirs, IMAGES, paired=True)
    assert not found.sure.any()


def test_rows_of_other_seeds_may_be_of_another_number_and_order() -> None:
    random = np.random.default_rng(0)
    ours, theirs = 0.6 + 0.05 * random.standard_normal((5, 3)), 0.5 + 0.05 * random.standard_normal((4, 3))
    found = class_gains(ours, theirs, IMAGES, paired=False)
    again = class_gains(ours[::-1], theirs, IMAGES, paired=False)
    assert found.p_value == pytest.approx(again.p_value)
    assert found.p_value is not None
    assert (found.p_value < 0.2).all()


def test_one_run_is_not_tested_and_a_class_without_images_never_differs() -> None:
    alone = class_gains(np.array([[0.6, 0.5]]), np.array([[0.5, 0.5]]), IMAGES[:2], paired=True)
    assert alone.p_value is None
    assert not alone.sure.any()
    empty = np.full((3, 2), [0.5, np.nan])
    found = class_gains(empty + 0.4, empty, np.array([10.0, 0.0]), paired=True)
    assert found.sure.tolist() == [True, False]


def test_benjamini_and_hochberg_of_a_textbook() -> None:
    """Benjamini and Hochberg 1995, section 3.2: of fifteen four are rejected at 0.05, by Bonferroni three."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    shuffled = np.random.default_rng(0).permutation(15)
    assert beyond_luck(np.array(p)[shuffled])[np.argsort(shuffled)].tolist() == [True] * 4 + [False] * 11


def test_a_large_p_stands_where_larger_ranks_do_and_nothing_stands_of_nothing() -> None:
    assert beyond_luck(np.array([0.04, 0.045, 0.049])).all()  # the third is below its step, and takes the others along
    assert not beyond_luck(np.array([0.04, 0.06, 0.07])).any()
    assert beyond_luck(np.array([np.nan, 0.01])).tolist() == [False, True]
    assert beyond_luck(np.array([])).size == 0
