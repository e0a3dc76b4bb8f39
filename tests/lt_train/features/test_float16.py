"""Banks of float16: half the bytes, trained in float32, and features that overflow are refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.banks import make_bank
from support.extraction import DIGITS, FEATURES, bytes_of, write_checkpoint

from lt_train.backbones.checkpoint import load_checkpoint, save_checkpoint
from lt_train.core.errors import BankError
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.shards import Extractor, Shard, ShardResult, in_this_process
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run

HALF = FEATURES.model_copy(update={"dtype": "float16"})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "stage1.safetensors")


def test_it_is_the_float32_bank_rounded(checkpoint: Path, tmp_path: Path) -> None:
    single, half = (open_bank(build_bank(DIGITS, checkpoint, spec, tmp_path)) for spec in (FEATURES, HALF))
    assert single.fingerprint != half.fingerprint
    assert half.train_features.dtype == half.test.features.dtype == torch.float16
    assert torch.equal(half.train_features, single.train_features.half())
    assert torch.equal(half.test.features, single.test.features.half())
    assert half.path is not None
    assert '"dtype": "float16"' in (half.path / "manifest.json").read_text()
    assert half.head is not None
    assert half.head[0].dtype == torch.float32


def halved(bank: FeatureBank) -> FeatureBank:
    val = None if bank.val is None else EvalSet(bank.val.features.half(), bank.val.labels)
    test = EvalSet(bank.test.features.half(), bank.test.labels)
    return replace(bank, train_features=bank.train_features.half(), val=val, test=test)


def as_single(bank: FeatureBank) -> FeatureBank:
    val = None if bank.val is None else EvalSet(bank.val.features.float(), bank.val.labels)
    test = EvalSet(bank.test.features.float(), bank.test.labels)
    return replace(bank, train_features=bank.train_features.float(), val=val, test=test)


@pytest.mark.parametrize("kind", ["los", "cosine", "disalign", "vanilla"])
@pytest.mark.parametrize("engine", [fused, reference])
def test_training_uses_the_rounded_features_in_float32(kind: str, engine: object) -> None:
    half = FeatureBank.from_arrays(halved(make_bank(views=2)).to_arrays())
    assert half.train_features.dtype == torch.float16
    runs = [Run(METHODS.parse({"kind": kind}), TrainingSpec(epochs=2), 0)]
    found, expected = (engine.fit(bank, runs)[0] for bank in (half, as_single(half)))  # type: ignore[attr-defined]
    assert found.failure is None
    np.testing.assert_array_equal(found.test_accuracy, expected.test_accuracy)
    np.testing.assert_array_equal(found.kept.loma, expected.kept.loma)
    assert all(array.dtype == np.float32 for array in found.kept.state.values())


def test_its_values_are_checked_too() -> None:
    bank = halved(make_bank())
    bank.check()
    bank.train_features[0, 17, 3] = float("inf")
    with pytest.raises(BankError, match=r"1 values are NaN or infinite, the first at image 17, feature 3, view 0"):
        replace(bank).check()


def test_a_feature_beyond_float16_is_refused_with_its_position(checkpoint: Path, tmp_path: Path) -> None:
    classifier, about = load_checkpoint(checkpoint)
    with torch.no_grad():
        for parameter in classifier.backbone.parameters():
            parameter.mul_(300)
    save_checkpoint(tmp_path / "large.safetensors", classifier, about)
    open_bank(build_bank(DIGITS, tmp_path / "large.safetensors", FEATURES, tmp_path / "single")).check()
    with pytest.raises(
        BankError, match=r"float16 stores magnitudes up to 65504, and feature \d+ of train image \d+ is .*use dtype"
    ):
        build_bank(DIGITS, tmp_path / "large.safetensors", HALF, tmp_path / "half")
    assert list((tmp_path / "half").iterdir()) == []


def test_a_pickled_extractor_gives_the_same_features_in_any_order(checkpoint: Path, tmp_path: Path) -> None:
    def elsewhere(extractor: Extractor, wanted: list[Shard]) -> list[ShardResult]:  # type: ignore[misc]
        copied = pickle.loads(pickle.dumps(extractor))
        done = [one for shard in reversed(wanted) for one in copied.run([shard])]
        assert len(done) == len(wanted) > 3
        yield from done

    expected = build_bank(DIGITS, checkpoint, FEATURES, tmp_path / "here")
    found = build_bank(DIGITS, checkpoint, FEATURES, tmp_path / "there", workers=elsewhere)
    assert bytes_of(found) == bytes_of(expected)
    again = build_bank(DIGITS, checkpoint, FEATURES, tmp_path / "again", workers=in_this_process)
    assert bytes_of(again) == bytes_of(expected)
