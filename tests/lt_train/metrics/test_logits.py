"""LoMa and regularised std: by hand, against plain numpy loops, and as identities."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lt_train.metrics import LogitStatistics, loma_by_group, loma_cv

STDS = ("population", "pos", "neg", "within")
FORMS = ("column", "row")
Floats = NDArray[np.float64]


def statistics(logits: Tensor, labels: Tensor, *, center: bool = False) -> LogitStatistics:
    return LogitStatistics(logits.shape[-1], tuple(logits.shape[1:-1]), center=center).update(logits, labels)


def random_case(seed: int, images: int = 40, classes: int = 5, lanes: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits whose true class stands out, and labels that cover every class."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (images - classes,), generator=stream)])
    logits = torch.randn(images, *lanes, classes, generator=stream, dtype=torch.float64)
    own = torch.nn.functional.one_hot(labels, classes).view(images, *([1] * len(lanes)), classes)
    return logits + 1.5 * own, labels


def slow_loma(z: Floats, y: NDArray[np.int64], form: str) -> Floats:
    """Definition 1, word by word."""
    classes = z.shape[1]
    values = np.full(classes, np.nan)
    for i in range(classes):
        own, other, gaps = [], [], []
        for n in range(len(y)):
            (own if y[n] == i else other).append(z[n, i])
            if y[n] == i:
                gaps.append(z[n, i] - np.mean([z[n, k] for k in range(classes) if k != i]))
        if form == "row" and gaps:
            values[i] = np.mean(gaps)
        if form == "column" and own and other:
            values[i] = np.mean(own) - np.mean(other)
    return values


def slow_std(z: Floats, y: NDArray[np.int64], std: str) -> Floats:
    values = []
    for i in range(z.shape[1]):
        column, own, other = z[:, i], z[y == i, i], z[y != i, i]
        pooled = np.concatenate([own - own.mean(), other - other.mean()])
        chosen = {"population": column, "pos": own, "neg": other, "within": pooled}[std]
        values.append(np.sqrt(np.mean((chosen - chosen.mean()) ** 2)))
    return np.array(values)


# LoMa


def test_loma_by_hand() -> None:
    logits = torch.tensor([[4.0, 1.0, 1.0], [2.0, 0.0, 1.0], [1.0, 5.0, 0.0], [0.0, 0.0, 2.0]])
    labels = torch.tensor([0, 0, 1, 2])
    # Column 0: (4 + 2)/2 - (1 + 0)/2; column 1: 5 - (1 + 0 + 0)/3; column 2: 2 - (1 + 1 + 0)/3.
    column = torch.tensor([2.5, 14 / 3, 4 / 3], dtype=torch.float64)
    # Row 0: ((4 - 1) + (2 - 0.5))/2; row 1: 5 - 0.5; row 2: 2 - 0.
    row = torch.tensor([2.25, 4.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(statistics(logits, labels).loma("column"), column)
    torch.testing.assert_close(statistics(logits, labels).loma("row"), row)
    torch.testing.assert_close(statistics(logits, labels).loma(), column)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_loma_is_the_definition(seed: int, center: bool, form: str) -> None:
    logits, labels = random_case(seed, images=30, classes=3 + seed)
    z = logits.numpy()
    if center:
        z = z - z.mean(axis=1, keepdims=True)
    found = statistics(logits, labels, center=center).loma(form)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), slow_loma(z, labels.numpy(), form), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_regularised_std_is_the_definition(std: str, center: bool, form: str) -> None:
    logits, labels = random_case(7)
    z = logits.numpy()
    if center:
        z = z - z.mean(axis=1, keepdims=True)
    found = statistics(logits, labels, center=center).regularised_std(std, form)  # type: ignore[arg-type]
    expected = slow_std(z, labels.numpy(), std) / slow_loma(z, labels.numpy(), form)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


# Identities

cases = st.tuples(st.integers(0, 10_000), st.integers(8, 40), st.integers(2, 6))
shifts = st.lists(st.floats(-50, 50), min_size=6, max_size=6)


@settings(max_examples=40, deadline=None)
@given(case=cases, bias=shifts)
def test_a_class_bias_moves_the_row_form_alone_and_by_what_it_should(
    case: tuple[int, int, int], bias: list[float]
) -> None:
    logits, labels = random_case(*case)
    classes = case[2]
    shift = torch.tensor(bias[:classes], dtype=torch.float64)
    before, after = statistics(logits, labels), statistics(logits + shift, labels)
    torch.testing.assert_close(after.loma("column"), before.loma("column"), atol=1e-9, rtol=0)
    moved = shift - (shift.sum() - shift) / (classes - 1)
    torch.testing.assert_close(after.loma("row") - before.loma("row"), moved, atol=1e-9, rtol=0)


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_centering_frees_the_column_form_of_shifts_of_an_image(case: tuple[int, int, int]) -> None:
    logits, labels = random_case(*case)
    shift = 5 * torch.randn(len(labels), 1, generator=torch.Generator().manual_seed(case[0]), dtype=torch.float64)
    plain, shifted = (statistics(z, labels, center=True) for z in (logits, logits + shift))
    torch.testing.assert_close(shifted.loma("column"), plain.loma("column"), atol=1e-9, rtol=0)
    # The row form is free of them by itself; the column form without centering is not.
    torch.testing.assert_close(
        statistics(logits + shift, labels).loma("row"), statistics(logits, labels).loma("row"), atol=1e-9, rtol=0
    )
    raw = statistics(logits + shift, labels).loma("column") - statistics(logits, labels).loma("column")
    assert float(raw.abs().max()) > 1e-6


@settings(max_examples=40, deadline=None)
@given(case=cases, scale=st.floats(0.01, 100))
def test_loma_scales_and_regularised_std_does_not(case: tuple[int, int, int], scale: float) -> None:
    logits, labels = random_case(*case)
    before, after = statistics(logits, labels), statistics(logits * scale, labels)
    torch.testing.assert_close(after.loma(), before.loma() * scale, rtol=1e-9, atol=1e-9)
    sure = before.loma() > 1e-3
    torch.testing.assert_close(after.regularised_std()[sure], before.regularised_std()[sure], rtol=1e-5, atol=1e-7)


def cut(logits: Tensor, labels: Tensor, cuts: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive batches; a cut at an end, or twice at one place, makes an empty one."""
    ends = sorted(min(place, len(labels)) for place in cuts)
    yield from zip(logits.tensor_split(ends), labels.tensor_split(ends), strict=True)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    lanes=st.sampled_from([(), (3,), (2, 3)]),
    center=st.booleans(),
)
def test_streaming_over_any_cut_is_the_whole_matrix(
    seed: int, cuts: list[int], lanes: tuple[int, ...], center: bool
) -> None:
    logits, labels = random_case(seed, images=30, classes=4, lanes=lanes)
    whole = statistics(logits, labels, center=center)
    streamed = LogitStatistics(4, lanes, center=center)
    for batch in cut(logits, labels, cuts):
        streamed.update(*batch)
    assert torch.equal(streamed.count, torch.bincount(labels, minlength=4).double())
    for form in FORMS:
        assert whole.loma(form).shape == (*lanes, 4)  # type: ignore[arg-type]
        torch.testing.assert_close(streamed.loma(form), whole.loma(form))  # type: ignore[arg-type]
        for std in STDS:
            found, expected = (each.regularised_std(std, form) for each in (streamed, whole))  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("center", [False, True])
def test_a_lane_is_what_it_is_alone(center: bool) -> None:
    logits, labels = random_case(3, lanes=(2, 3))
    together = statistics(logits, labels, center=center)
    for s in range(2):
        for t in range(3):
            alone = statistics(logits[:, s, t], labels, center=center)
            for form in FORMS:
                torch.testing.assert_close(together.loma(form)[s, t], alone.loma(form))  # type: ignore[arg-type]
                for std in STDS:
                    torch.testing.assert_close(
                        together.regularised_std(std, form)[s, t],  # type: ignore[arg-type]
                        alone.regularised_std(std, form),  # type: ignore[arg-type]
                        equal_nan=True,
                    )


def test_float32_logits_are_summed_in_double() -> None:
    logits, labels = random_case(0, images=4000, classes=3)
    far = logits.float() + 1000.0
    found = statistics(far, labels).regularised_std("within")
    expected = slow_std(far.double().numpy(), labels.numpy(), "within")
    expected = expected / slow_loma(far.double().numpy(), labels.numpy(), "column")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_floor_of_the_population_form(share: float) -> None:
    """Logits that depend on the label only: within is 0, population is sqrt(p(1-p)), 0.30 at K = 10."""
    positive = round(share * 100)
    labels = torch.tensor([0] * positive + [1] * (100 - positive))
    logits = 3.0 * torch.nn.functional.one_hot(labels, 2).double()
    found = statistics(logits, labels)
    floor = math.sqrt(share * (1 - share))
    torch.testing.assert_close(found.regularised_std()[0], torch.tensor(floor, dtype=torch.float64))
    for std in ("pos", "neg", "within"):
        torch.testing.assert_close(found.regularised_std(std), torch.zeros(2, dtype=torch.float64))  # type: ignore[arg-type]
    if share == 0.1:
        assert floor == pytest.approx(0.30)


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_no_population_form_is_below_its_floor(case: tuple[int, int, int]) -> None:
    logits, labels = random_case(*case)
    share = torch.bincount(labels, minlength=case[2]).double() / len(labels)
    found = statistics(logits, labels).regularised_std()
    sure = ~found.isnan()
    assert bool((found[sure] >= (share * (1 - share)).sqrt()[sure] - 1e-9).all())


# Undefined values


@pytest.mark.parametrize("form", FORMS)
def test_a_class_without_images_is_nan_and_flagged(form: str) -> None:
    logits, labels = random_case(1, classes=3)
    labels[labels == 1] = 2
    found = statistics(logits + 9 * torch.nn.functional.one_hot(labels, 3), labels)
    assert found.loma(form).isnan().tolist() == [False, True, False]  # type: ignore[arg-type]
    assert found.flags(form).tolist() == [False, True, False]  # type: ignore[arg-type]
    for std in STDS:
        assert found.regularised_std(std, form).isnan().tolist() == [False, True, False]  # type: ignore[arg-type]


def test_a_class_without_others_has_no_column_form() -> None:
    found = statistics(torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 0]))
    assert found.loma("column").isnan().all()
    assert found.loma("row")[0] == 2.0


def test_a_magnitude_that_is_not_positive_is_nan_and_flagged() -> None:
    # Class 0 is lower on its own images; class 1 is constant, so its magnitude is exactly 0; class 2 is fine.
    logits = torch.tensor([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 4.0]])
    found = statistics(logits, torch.tensor([0, 1, 2]))
    assert found.loma().tolist() == [-2.0, 0.0, 4.0]
    assert found.flags().tolist() == [True, True, False]
    assert found.regularised_std().isnan().tolist() == [True, True, False]


# Over classes


def test_loma_cv_by_hand() -> None:
    loma = torch.tensor([[1.0, 3.0], [2.0, 2.0], [5.0, float("nan")], [-1.0, -3.0]])
    found = loma_cv(loma)
    assert found[:3].tolist() == [0.5, 0.0, 0.0]
    assert bool(found[3].isnan())
    assert bool(loma_cv(torch.tensor([float("nan")] * 2)).isnan())
    torch.testing.assert_close(loma_cv(torch.tensor([1.0, float("nan"), 3.0])), torch.tensor(0.5))


def test_a_hundred_classes_make_ten_groups_by_descending_size() -> None:
    counts = torch.arange(100)  # class 99 is the largest
    loma = torch.arange(100.0)
    loma[0] = -loma[0] - 50  # magnitudes count by absolute value in the denominator
    found = loma_by_group(loma, counts)
    assert found.shape == (10,)
    total = float(loma.abs().sum())
    expected = [sum(float(loma[k]) for k in range(90 - 10 * g, 100 - 10 * g)) / 10 / total for g in range(10)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_seven_classes_make_seven_groups_and_equal_sizes_keep_their_order() -> None:
    counts = torch.tensor([5, 50, 5, 500, 5, 5, 7])
    found = loma_by_group(torch.arange(1.0, 8.0), counts)
    torch.testing.assert_close(found, torch.tensor([4.0, 2, 7, 1, 3, 5, 6]) / 28)


def test_classes_that_are_nan_are_left_out_of_their_group() -> None:
    loma = torch.tensor([[4.0, float("nan"), 2.0, 2.0], [1.0, 1.0, float("nan"), float("nan")]])
    found = loma_by_group(loma, torch.tensor([4, 3, 2, 1]), groups=2)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.25], [0.5, float("nan")]]), equal_nan=True)


def test_groups_are_as_even_as_they_can_be() -> None:
    found = loma_by_group(torch.ones(25), torch.ones(25), groups=10)
    torch.testing.assert_close(found, torch.full((10,), 1 / 25))
    ramp = loma_by_group(torch.arange(5.0) + 1, torch.arange(5, 0, -1), groups=2)
    torch.testing.assert_close(ramp, torch.tensor([2.0, 4.5]) / 15)
