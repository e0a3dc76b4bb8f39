"""Damaged banks are refused with the name of the file; a full disk leaves nothing partial behind."""

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.damage import damaged_copies, flip_bit

from lt_train.core.errors import BankError, StorageError
from lt_train.features import files
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.features.files import bank_fingerprint, open_bank, open_test, write_bank

INPUTS = {"dataset": "synthetic", "seed": 0}


def make(images: int = 12) -> FeatureBank:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    return FeatureBank(
        fingerprint=bank_fingerprint(INPUTS),
        train_features=torch.randn(2, images, 4, generator=stream),
        train_labels=labels,
        val=None,
        test=EvalSet(torch.randn(1, images, 4, generator=stream), labels),
        head=(torch.randn(3, 4, generator=stream), torch.zeros(3)),
        class_counts=torch.bincount(labels),
        split_counts=torch.bincount(labels),
        notes=("a note",),
        record={"accuracy": 0.25},
        class_names=("auk", "crow", "red fox"),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_bank(tmp_path, INPUTS, make())


def test_a_round_trip_changes_nothing(path: Path) -> None:
    bank, expected = open_bank(path), make()
    for field in dataclasses.fields(FeatureBank):
        value, original = getattr(bank, field.name), getattr(expected, field.name)
        if isinstance(original, torch.Tensor):
            assert torch.equal(value, original), field.name
        elif field.name in ("fingerprint", "notes", "val", "class_names"):
            assert value == original, field.name
    assert torch.equal(bank.test.features, expected.test.features)
    again = FeatureBank.from_arrays(bank.to_arrays())
    assert torch.equal(again.train_features, expected.train_features)
    assert again.head is not None
    assert expected.head is not None
    assert torch.equal(again.head[0], expected.head[0])


def test_the_test_set_can_be_opened_without_the_rest_and_is_checked(path: Path) -> None:
    (path / "train.safetensors").unlink()  # much larger, and not needed
    assert torch.equal(open_test(path).features, make().test.features)
    file = path / "test.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BankError, match=r"test\.safetensors is truncated or altered"):
        open_test(path)


@pytest.mark.parametrize("name", ["train.safetensors", "test.safetensors", "head.safetensors"])
def test_a_flipped_bit_is_noticed(path: Path, name: str) -> None:
    flip_bit(path / name, -5)
    with pytest.raises(BankError, match=rf"feature bank {path}: {name} is altered: .* remove the directory"):
        open_bank(path)


@pytest.mark.parametrize(
    "name", ["train.safetensors", "test.safetensors", "head.safetensors", "stage1.json", "manifest.json"]
)
def test_no_damage_gives_another_bank(path: Path, name: str) -> None:
    file, truth, messages = path / name, make(), list[str]()
    for damaged in damaged_copies(file.read_bytes(), flips=100, cuts=6):
        file.write_bytes(damaged)
        try:
            bank = open_bank(path)
        except BankError as error:
            messages.append(str(error))
        else:
            assert name == "manifest.json", "every byte of the other files has a meaning"
            assert (bank.fingerprint, bank.notes, bank.record) == (truth.fingerprint, truth.notes, truth.record)
            assert bank.class_names == truth.class_names
            assert torch.equal(bank.train_features, truth.train_features)
            assert torch.equal(bank.class_counts, truth.class_counts)
    assert len(messages) >= (80 if name == "manifest.json" else 106)
    assert all(str(path) in message and name in message for message in messages)


def test_a_file_that_cannot_be_read_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "digest_file", fail)
    with pytest.raises(BankError, match=rf"{path}: train\.safetensors cannot be read \(Input/output error\)"):
        open_bank(path)


@pytest.mark.parametrize("name", ["train.safetensors", "test.safetensors", "head.safetensors"])
def test_a_truncated_file_is_noticed(path: Path, name: str) -> None:
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    with pytest.raises(BankError, match=rf"feature bank {path}: {name} is truncated or altered: \d+ bytes instead of"):
        open_bank(path)


def test_a_missing_file_is_noticed(path: Path) -> None:
    (path / "test.safetensors").unlink()
    with pytest.raises(BankError, match=r"test\.safetensors is missing"):
        open_bank(path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("class_counts", [1, 1, 1], "its content does not match its seal"),
        ("inputs", {"dataset": "another"}, "its content does not match its seal"),
        ("class_names", ["crow", "auk", "red fox"], "its content does not match its seal"),
        ("class_names", [], "its content does not match its seal"),
        ("files", {}, "its content does not match its seal"),
        ("num_classes", "three", "manifest.json is truncated or altered"),
        ("format", 99, "bank format must be 3, got 99"),
    ],
)
def test_an_edited_manifest_is_noticed(path: Path, key: str, value: object, match: str) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(BankError, match=match):
        open_bank(path)


def test_a_manifest_may_lack_names_of_classes(tmp_path: Path) -> None:
    path = write_bank(tmp_path, INPUTS, dataclasses.replace(make(), class_names=()))
    document = json.loads((path / "manifest.json").read_text())
    del document["class_names"]
    (path / "manifest.json").write_text(json.dumps(document))
    assert open_bank(path).class_names == ()


def test_a_truncated_manifest_is_noticed(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(BankError, match=r"manifest\.json is truncated or altered"):
        open_bank(path)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=rf"{tmp_path} is not a feature bank: it has no manifest.json"):
        open_bank(tmp_path)


def test_an_existing_bank_is_not_rewritten(path: Path) -> None:
    before = (path / "manifest.json").stat().st_mtime_ns
    assert write_bank(path.parent, INPUTS, make()) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_named_and_nothing_partial_stays(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    path = disk / bank_fingerprint(INPUTS)
    with pytest.raises(StorageError, match=rf"cannot write {path}: the disk is full; free some space and run the same"):
        write_bank(disk, INPUTS, make(images=5000))
    assert list(disk.iterdir()) == []
    write_bank(disk, INPUTS, make())  # the space is free again
    open_bank(path)


@pytest.mark.parametrize("text", ["[" * 300_000, '{"format": 3, "inputs": ' + "[" * 500 + "]" * 500 + "}"])
def test_a_deeply_nested_manifest_is_damaged(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)
    for read in (open_bank, open_test):
        with pytest.raises(BankError, match=rf"{path}: manifest\.json is truncated or altered"):
            read(path)


def test_a_bank_under_the_fingerprint_of_another_is_refused(path: Path) -> None:
    other = path.rename(path.with_name("0" * 64))
    for read in (open_bank, open_test):
        with pytest.raises(BankError, match=rf"{other}: manifest\.json belongs to another bank, {path.name}"):
            read(other)
    assert open_bank(other.rename(path.with_name("digits"))).fingerprint == path.name, "a name of the user's choice"


@pytest.mark.parametrize("name", ["train.safetensors", "test.safetensors"])
def test_a_sealed_manifest_must_list_train_and_test(path: Path, name: str) -> None:
    file = path / "manifest.json"
    document = json.loads(file.read_text())
    del document["files"][name]
    file.write_text(files.Manifest.model_validate(document).sealed().model_dump_json())
    for read in (open_bank, open_test):
        with pytest.raises(BankError, match=rf"{path}: manifest\.json does not list {name}"):
            read(path)
