"""A damaged file of the cache is named, set aside and created again, with the same content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.damage import damaged_copies, flip_bit

from lt_train.core.errors import StorageError
from lt_train.features.files import open_bank, read_manifest
from sweeps.config.spec import SweepSpec
from sweeps.experiment import prepare as preparing
from sweeps.experiment.prepare import open_cached_bank, prepare

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture
def images(small_sweep: Callable[..., SweepSpec], tmp_path: Path) -> SweepSpec:
    """A sweep on images, which trains a small backbone for one epoch."""
    rng, arrays = np.random.default_rng(0), dict[str, np.ndarray]()
    for name, counts in {"train": [20, 8, 4], "val": [3] * 3, "test": [5] * 3}.items():
        labels = np.repeat(np.arange(3), counts)
        arrays[f"{name}_images"] = rng.integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8)
        arrays[f"{name}_labels"] = labels
    np.savez(tmp_path / "images.npz", allow_pickle=False, **arrays)
    return small_sweep(
        dataset={"path": str(tmp_path / "images.npz")},
        backbone={"kind": "small_cnn", "width": 2},
        stage1={"kind": "ce", "epochs": 1, "batch_size": 8},
    )


def contents(cache: Path) -> dict[Path, bytes]:
    return {file.relative_to(cache): file.read_bytes() for file in sorted(cache.rglob("*")) if file.is_file()}


def test_a_damaged_file_of_the_cache_is_created_again(
    images: SweepSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fingerprint = prepare(images).fingerprint
    cache, saved = Path(images.storage) / "cache", tmp_path / "saved"
    truth = contents(cache)
    shutil.copytree(cache, saved)
    assert {file.suffix for file in truth} == {".json", ".safetensors"}
    assert len(truth) == 7, "a checkpoint, three sets, a head, the record of stage 1 and the manifest"
    for name, content in truth.items():
        restored = 0
        entry = Path(*name.parts[:2])  # the checkpoint, or the directory of the bank
        for damaged in damaged_copies(content, flips=5, cuts=2):
            shutil.rmtree(cache)
            shutil.copytree(saved, cache)
            (cache / name).write_bytes(damaged)
            caplog.clear()
            assert prepare(images).fingerprint == fingerprint
            found = contents(cache)
            warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            if not warnings:
                assert name.name == "manifest.json", "white space"
                continue
            restored += 1
            assert found.items() >= truth.items()
            place = entry.with_name(f"{entry.name}.damaged")
            assert found[place / name.relative_to(entry)] == damaged
            (warning,) = warnings
            assert str(cache / entry) in warning
            assert name.name in warning
            assert warning.endswith(f"; it is kept as {place.name} and created again")
        assert restored >= (4 if name.name == "manifest.json" else 7)


def test_a_second_damaged_file_replaces_the_first(images: SweepSpec) -> None:
    prepare(images)
    cache = Path(images.storage) / "cache"
    (file,) = (cache / "checkpoints").iterdir()
    content = file.read_bytes()
    for place in (-5, -9):
        flip_bit(file, place)
        damaged = file.read_bytes()
        prepare(images)
        assert {entry.name for entry in file.parent.iterdir()} == {file.name, f"{file.name}.damaged"}
        assert file.with_name(f"{file.name}.damaged").read_bytes() == damaged
        assert file.read_bytes() == content


def test_a_damaged_bank_of_features_is_created_again(
    small_sweep: Callable[..., SweepSpec], caplog: pytest.LogCaptureFixture
) -> None:
    spec = small_sweep()
    bank = prepare(spec)
    assert bank.path is not None
    truth = contents(bank.path)
    flip_bit(bank.path / "test.safetensors", -5)
    assert prepare(spec).fingerprint == bank.fingerprint
    assert contents(bank.path) == truth
    (warning,) = caplog.messages
    assert "test.safetensors is altered" in warning


def test_a_bank_that_another_process_has_created_again_is_kept(
    small_sweep: Callable[..., SweepSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_sweep()
    path = prepare(spec).path
    assert path is not None
    saved = path.with_name("intact")
    shutil.copytree(path, saved)
    flip_bit(path / "test.safetensors", -5)
    calls = []

    def meanwhile(opened: Path) -> object:
        calls.append(opened)
        try:
            return open_bank(opened)
        finally:
            if len(calls) == 1:
                path.rename(path.with_name("by another process"))
                saved.rename(path)

    monkeypatch.setattr(preparing, "open_bank", meanwhile)
    assert prepare(spec).path == path
    assert len(calls) == 2
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, "by another process"}


def exchange(folder: Path) -> list[Path]:
    """Exchange the two entries of a folder by name."""
    first, second = sorted(folder.iterdir())
    first.rename(folder / "moved")
    second.rename(first)
    (folder / "moved").rename(second)
    return [first, second]


def test_exchanged_checkpoints_are_created_again(images: SweepSpec, caplog: pytest.LogCaptureFixture) -> None:
    assert images.backbone is not None
    other = images.model_copy(update={"backbone": images.backbone.model_copy(update={"width": 3})})
    truth = [prepare(spec).fingerprint for spec in (images, other)]
    folder = Path(images.storage) / "cache" / "checkpoints"
    before = contents(folder)
    names = {file.name for file in exchange(folder)}
    assert [prepare(spec).fingerprint for spec in (images, other)] == truth
    assert len(caplog.messages) == 2
    for warning in caplog.messages:
        assert "belongs to another training" in warning
        assert warning.endswith(".safetensors.damaged and created again")
    assert contents(folder).items() >= before.items()
    assert {entry.name for entry in folder.iterdir()} == names | {f"{name}.damaged" for name in names}


@pytest.mark.parametrize("with_data", [True, False])
def test_exchanged_banks_are_created_again(
    images: SweepSpec, caplog: pytest.LogCaptureFixture, with_data: bool
) -> None:
    other = images.model_copy(update={"features": images.features.model_copy(update={"views": 2})})
    banks = [prepare(spec) for spec in (images, other)]
    folder = Path(images.storage) / "cache" / "banks"
    exchange(folder)
    for spec, bank in zip((images, other), banks, strict=True):
        if not with_data:
            assert open_cached_bank(spec, bank.fingerprint) is None
        found = prepare(spec)
        assert found.fingerprint == bank.fingerprint
        assert found.train_features.shape == bank.train_features.shape
        assert f"{bank.fingerprint}: manifest.json belongs to another bank" in caplog.messages[-1]
    assert len(caplog.messages) == 2
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("with_data", [True, False])
def test_a_bank_without_a_test_set_is_created_again(
    small_sweep: Callable[..., SweepSpec], caplog: pytest.LogCaptureFixture, listed: bool, with_data: bool
) -> None:
    spec = small_sweep()
    bank = prepare(spec)
    assert bank.path is not None
    truth = contents(bank.path)
    (bank.path / "test.safetensors").unlink()
    if not listed:
        manifest = read_manifest(bank.path)
        rest = {name: entry for name, entry in manifest.files.items() if name != "test.safetensors"}
        lesser = manifest.model_copy(update={"files": rest}).sealed()
        (bank.path / "manifest.json").write_text(lesser.model_dump_json())
    if not with_data:
        assert open_cached_bank(spec, bank.fingerprint) is None
    prepare(spec)
    assert contents(bank.path) == truth
    (warning,) = caplog.messages
    assert "test.safetensors" in warning
    assert warning.endswith(f"{bank.fingerprint}.damaged and created again")


def test_a_damaged_bank_is_not_used_without_the_data(
    small_sweep: Callable[..., SweepSpec], caplog: pytest.LogCaptureFixture
) -> None:
    spec = small_sweep()
    bank = prepare(spec)
    assert open_cached_bank(spec, bank.fingerprint) is not None
    assert bank.path is not None
    flip_bit(bank.path / "train.safetensors", -5)
    assert open_cached_bank(spec, bank.fingerprint) is None
    (warning,) = caplog.messages
    assert "train.safetensors is altered" in warning
    assert bank.path.with_name(f"{bank.fingerprint}.damaged").is_dir()


def test_a_damaged_bank_that_cannot_be_renamed_is_an_error(
    small_sweep: Callable[..., SweepSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_sweep()
    path = prepare(spec).path
    assert path is not None
    flip_bit(path / "train.safetensors", -5)

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match=rf"cannot write {path}\.damaged: Permission denied"):
        prepare(spec)
