"""`FeatureBank.check`: the number of invalid values and the position of the first are reported."""

from dataclasses import replace

import pytest
import torch
from support.banks import make_bank
from torch import Tensor

from lt_train.core.errors import BankError
from lt_train.features.bank import EvalSet, FeatureBank

NAN, INF = float("nan"), float("inf")


def spoiled(values: Tensor, *places: tuple[tuple[int, ...], float]) -> Tensor:
    """A copy with these values at these places."""
    copy = values.clone()
    for place, value in places:
        copy[place] = value
    return copy


def with_features(bank: FeatureBank, name: str, features: Tensor) -> FeatureBank:
    if name == "train":
        return replace(bank, train_features=features)
    return replace(bank, **{name: EvalSet(features, getattr(bank, name).labels)})


def with_labels(bank: FeatureBank, name: str, labels: Tensor) -> FeatureBank:
    if name == "train":
        return replace(bank, train_labels=labels)
    return replace(bank, **{name: EvalSet(getattr(bank, name).features, labels)})


def features_of(bank: FeatureBank, name: str) -> Tensor:
    features: Tensor = bank.train_features if name == "train" else getattr(bank, name).features
    return features


every_set = pytest.mark.parametrize("name", ["train", "val", "test"])


def test_a_valid_bank_passes() -> None:
    make_bank().check()
    make_bank(val_per_class=0, head=False).check()


@every_set
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_bad_feature_is_found(name: str, value: float) -> None:
    bank = make_bank()
    bad = with_features(bank, name, spoiled(features_of(bank, name), ((0, 17, 3), value)))
    expected = f"^{name} features must be finite, but 1 values are NaN or infinite, the first at image 17, feature 3, "
    with pytest.raises(BankError, match=expected + "view 0$"):
        bad.check()


def test_all_are_counted_and_the_first_is_named() -> None:
    """Over chunks and views; values that cancel in a sum are found too."""
    bank = make_bank((5000, 5000), dim=2, views=2)
    places = [((0, 4095, 1), INF), ((0, 4096, 0), -INF), ((0, 9999, 1), NAN), ((1, 0, 0), INF), ((1, 0, 1), -INF)]
    bad = replace(bank, train_features=spoiled(bank.train_features, *places))
    with pytest.raises(BankError, match="but 5 values are NaN or infinite, the first at image 4095, feature 1, view"):
        bad.check()
    only_later = replace(bank, train_features=spoiled(bank.train_features, ((1, 8192, 1), NAN)))
    with pytest.raises(BankError, match="but 1 values are NaN or infinite, the first at image 8192, feature 1, view 1"):
        only_later.check()


def test_large_numbers_are_valid() -> None:
    """Although their sum is infinite."""
    bank = make_bank()
    replace(bank, train_features=torch.full_like(bank.train_features, 3e38)).check()


@every_set
@pytest.mark.parametrize("value", [-1, 6, 10**12])
def test_a_label_out_of_range_is_found(name: str, value: int) -> None:
    bank = make_bank()
    labels = (bank.train_labels if name == "train" else getattr(bank, name).labels).clone()
    labels[5] = value
    expected = rf"^{name} labels must be in 0\.\.5, but 1 of {len(labels)} are not, the first at image 5: {value}$"
    with pytest.raises(BankError, match=expected):
        with_labels(bank, name, labels).check()


@pytest.mark.parametrize(("place", "name"), [(0, "weight"), (1, "bias")])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_stage_1_head_that_is_not_finite_is_found(place: int, name: str, value: float) -> None:
    bank = make_bank()
    assert bank.head is not None
    head = list(bank.head)
    head[place] = spoiled(head[place], ((3,), value))
    number = 8 if name == "weight" else 1
    with pytest.raises(
        BankError,
        match=f"^the stage-1 {name} must be finite, but {number} values are NaN or infinite, the first of class 3$",
    ):
        replace(bank, head=(head[0], head[1])).check()


def test_all_problems_are_reported_at_once() -> None:
    bank = make_bank()
    bad = with_features(bank, "val", spoiled(features_of(bank, "val"), ((0, 0, 0), NAN)))
    bad = with_labels(bad, "test", torch.full_like(bank.test.labels, 9))
    with pytest.raises(BankError, match=r"^test labels must be .*; val features must be finite, but 1 values are NaN"):
        bad.check()


def test_the_bank_is_scanned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of one sweep share a bank; a large one is on disk."""
    bank = make_bank()
    bank.check()

    def refuse(self: Tensor, **_: object) -> Tensor:
        raise AssertionError("scanned again")

    monkeypatch.setattr(Tensor, "sum", refuse)
    bank.check()
    with pytest.raises(AssertionError, match="scanned again"):
        replace(bank, notes=("another",)).check()


def test_an_empty_set_is_valid() -> None:
    bank = make_bank()
    replace(bank, val=EvalSet(torch.empty(1, 0, 8), torch.empty(0, dtype=torch.int64))).check()
