"""`lt_train.fit` and `lt_train.bank_from_arrays`, the API for scripts and notebooks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lt_train
from lt_train.core.errors import DataError, LongtailError, SpecError
from lt_train.datasets.arrays import Arrays
from lt_train.features.extract import build_bank
from lt_train.features.spec import FeaturesSpec
from lt_train.retrain import fused

TRAINING = lt_train.TrainingSpec(epochs=3)


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as archive:
        return dict(archive)


def test_a_bank_from_arrays_is_that_of_the_file(features_file: Path, tmp_path: Path) -> None:
    bank = lt_train.bank_from_arrays(**arrays_of(features_file))
    path = build_bank(Arrays(path=str(features_file)), None, FeaturesSpec(), tmp_path)
    theirs = lt_train.open_bank(path)
    assert torch.equal(bank.train_features, theirs.train_features)
    assert torch.equal(bank.class_counts, theirs.class_counts)
    los = lt_train.methods.LOS(smooth_factor=0.5)
    frames = [lt_train.fit(one, los, seeds=2, training=TRAINING).to_frame() for one in (bank, theirs)]
    assert frames[0].equals(frames[1])


def test_the_table_shows_what_the_engine_returns(features_file: Path) -> None:
    bank = lt_train.bank_from_arrays(**arrays_of(features_file))
    methods = [lt_train.methods.LOS(smooth_factor=0.5, lr=0.01), lt_train.methods.CE(lr=1e38)]
    fits = lt_train.fit(bank, methods, seeds=[3, 4], training=TRAINING)
    runs = [lt_train.Run(method, TRAINING, seed) for method in methods for seed in (3, 4)]
    frame = fits.to_frame()
    assert frame.seed.tolist() == [3, 4, 3, 4]
    assert frame.method.tolist() == ["los", "los", "ce", "ce"]
    assert frame["method.smooth_factor"].isna().tolist() == [False, False, True, True]
    for one, expected in zip(fits, fused.fit(bank, runs), strict=True):
        np.testing.assert_array_equal(one.result.test_accuracy, expected.test_accuracy)
    assert frame.acc_all[1] == fits[1].result.test_accuracy[-1, 0]
    assert frame.val_acc_few[0] == fits[0].result.val_accuracy[-1, 3]
    curves = fits.curves()
    assert curves.query("method == 'los' and seed == 4").epoch.tolist() == [1, 2, 3]
    assert frame.failure[2].startswith("diverged")
    assert np.isnan(frame.acc_all[2])
    logits = fits[0].classifier()(bank.test.features.float()).mean(dim=0)
    assert (logits.argmax(-1) == bank.test.labels).float().mean().item() == pytest.approx(frame.acc_all[0], abs=1e-6)
    with pytest.raises(LongtailError, match="ce, seed 3 failed: diverged"):
        fits[2].classifier()


def test_wrong_arrays_are_named(features_file: Path) -> None:
    arrays = arrays_of(features_file)
    with pytest.raises(DataError, match="arrays: val_labels requires val_features"):
        lt_train.bank_from_arrays(**{name: value for name, value in arrays.items() if name != "val_features"})
    with pytest.raises(DataError, match="train_features must be finite"):
        lt_train.bank_from_arrays(**arrays | {"train_features": np.full_like(arrays["train_features"], np.nan)})


def test_numbers_of_numpy_and_devices_of_torch_are_accepted(features_file: Path) -> None:
    bank = lt_train.bank_from_arrays(**arrays_of(features_file))
    fits = lt_train.fit(bank, "los", seeds=np.arange(2), training={"epochs": 1}, device=torch.device("cpu"))
    assert fits.to_frame().equals(lt_train.fit(bank, "los", seeds=np.int64(2), training={"epochs": 1}).to_frame())


@pytest.mark.parametrize("seeds", [0, -1, 1.0, [1.5], "12", []])
def test_wrong_seeds_are_refused(features_file: Path, seeds: Any) -> None:
    bank = lt_train.bank_from_arrays(**arrays_of(features_file))
    with pytest.raises(SpecError, match=r"seeds must be a number >= 1, or a list of whole numbers >= 0"):
        lt_train.fit(bank, "los", seeds=seeds)


def test_settings_that_differ_are_told_apart(features_file: Path) -> None:
    bank = lt_train.bank_from_arrays(**arrays_of(features_file))
    frame = lt_train.fit(
        bank, [lt_train.methods.CE(), lt_train.methods.CE(head="cosine")], training=TRAINING
    ).to_frame()
    assert frame["method.head.kind"].tolist() == ["linear", "cosine"]
