"""An interrupted extraction is resumed, and its bank has the same bytes as that of an uninterrupted one."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import extraction
from support.damage import damaged_copies, flip_bit
from support.extraction import DIGITS, FEATURES, TOTAL, bytes_of, write_checkpoint

from lt_train.core.errors import StorageError
from lt_train.core.io import allocate, tensor_offsets
from lt_train.features import extract, partial
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.partial import exclusive
from lt_train.features.shards import Extractor, Shard, ShardResult

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "stage1.safetensors")


class Stop(Exception):
    pass


def stopped_after(images: int, checkpoint: Path, store: Path, **options: Any) -> None:
    """Run an extraction in this process and interrupt it."""

    def report(done: int, total: int, note: str) -> None:
        if done >= images:
            raise Stop

    with pytest.raises(Stop):
        build_bank(DIGITS, checkpoint, options.pop("features", FEATURES), store, report=report, **options)


def extracted(checkpoint: Path, store: Path, **options: Any) -> tuple[Path, list[tuple[int, int, str]]]:
    reports: list[tuple[int, int, str]] = []
    features = options.pop("features", FEATURES)
    return build_bank(DIGITS, checkpoint, features, store, report=lambda *one: reports.append(one), **options), reports


def shard(line: bytes) -> list[Any]:
    """The shard of a journal line."""
    found: list[Any] = json.loads(line)["shard"]
    return found


def test_an_extraction_killed_at_random_resumes_to_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    expected = extraction.extract(checkpoint, tmp_path / "uninterrupted")
    store, chance = tmp_path / "banks", random.Random(5)
    for kill_after in sorted(chance.sample(range(50, TOTAL - 50), 3)):
        command = [sys.executable, extraction.__file__, str(checkpoint), str(store), str(kill_after)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [entry.name for entry in store.iterdir()] == [f"{expected.name}.partial"]
    path, reports = extracted(checkpoint, store)
    assert bytes_of(path) == bytes_of(expected)
    assert [entry.name for entry in store.iterdir()] == [path.name]
    done, total, note = reports[0]
    assert total == TOTAL
    assert kill_after <= done < kill_after + 50, "journalled work must not be repeated"
    assert note == f"resumed after {done} of {TOTAL} images"
    assert reports[-1][0] == TOTAL
    assert "images/s" in reports[-1][2]


def test_an_orderly_stop_loses_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Although the journal is synced only every two seconds."""
    stopped_after(500, checkpoint, tmp_path)
    _, reports = extracted(checkpoint, tmp_path)
    assert reports[0][0] >= 500


def test_a_truncated_journal_line_is_ignored(checkpoint: Path, tmp_path: Path) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    store = tmp_path / "banks"
    stopped_after(500, checkpoint, store)
    (journal,) = store.glob("*.partial/journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines)[:-3])
    (data,) = store.glob("*.partial/train.safetensors")
    part, view, start, _ = json.loads(lines[-1])["shard"]
    assert part == "train"
    spoil = tensor_offsets(data)["features"] + (view * 369 + start) * 16 * 4
    with data.open("r+b") as opened:  # the rows of that line never reached the disk
        opened.seek(spoil)
        opened.write(b"\xff" * 16)
    path, reports = extracted(checkpoint, store)
    assert reports[0][0] == sum(
        stop - start for _, _, start, stop in (json.loads(line)["shard"] for line in lines[:-1])
    )
    assert bytes_of(path) == bytes_of(expected)


@pytest.mark.parametrize("stopped_at", [500, TOTAL])
@pytest.mark.parametrize(
    "name", ["train.safetensors", "val.safetensors", "test.safetensors", "journal.jsonl", "plan.json"]
)
def test_damage_to_an_unfinished_extraction_does_not_reach_the_bank(
    checkpoint: Path, tmp_path: Path, name: str, stopped_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    stopped_after(stopped_at, checkpoint, tmp_path / "stopped")
    (file,) = (tmp_path / "stopped").glob(f"*.partial/{name}")
    restored = 0
    for number, damaged in enumerate(damaged_copies(file.read_bytes(), flips=8, cuts=3)):
        store = tmp_path / f"damaged {number}"
        shutil.copytree(tmp_path / "stopped", store)
        (store / file.relative_to(tmp_path / "stopped")).write_bytes(damaged)
        caplog.clear()
        path, reports = extracted(checkpoint, store)
        assert bytes_of(path) == bytes_of(expected)
        assert reports[-1][0] == TOTAL
        if warnings := [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]:
            assert all(name in warning for warning in warnings)
            restored += 1
    assert restored or name in ("val.safetensors", "test.safetensors")  # of which little or nothing is filled


@pytest.mark.parametrize("name", ["plan.json", "journal.jsonl"])
def test_deeply_nested_json_in_an_unfinished_extraction_is_damaged(
    checkpoint: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    stopped_after(500, checkpoint, tmp_path / "banks")
    (file,) = (tmp_path / "banks").glob(f"*.partial/{name}")
    file.write_text("[" * 300_000 + "\n")
    path, _ = extracted(checkpoint, tmp_path / "banks")
    assert bytes_of(path) == bytes_of(expected)
    assert name in caplog.messages[0]


@pytest.mark.parametrize(
    "name", ["train.safetensors", "val.safetensors", "journal.jsonl", "plan.json", "plan.json.tmp", "lock", ""]
)
def test_an_unfinished_extraction_with_a_directory_in_place_of_a_file_is_set_aside(
    checkpoint: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    store = tmp_path / "banks"
    stopped_after(500, checkpoint, store)
    unfinished = store / f"{expected.name}.partial"
    if name:
        (unfinished / name).unlink(missing_ok=True)
        (unfinished / name / "inner").mkdir(parents=True)
    else:
        shutil.rmtree(unfinished)
        unfinished.write_text("x")
    path, reports = extracted(checkpoint, store)
    assert bytes_of(path) == bytes_of(expected)
    assert reports[-1][0] == TOTAL
    assert {entry.name for entry in store.iterdir()} == {path.name, f"{unfinished.name}.damaged"}
    (warning,) = caplog.messages
    assert warning.startswith(f"{unfinished / name} is not as it was written; {unfinished.name} is kept as")


def test_only_damaged_rows_are_extracted_again(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped_after(800, checkpoint, tmp_path)
    (journal,) = tmp_path.glob("*.partial/journal.jsonl")
    filled = sum(stop - start for _, _, start, stop in map(shard, journal.read_bytes().splitlines()))
    flip_bit(journal.with_name("train.safetensors"), -5)
    flip_bit(journal, 3)
    for damaged in (1, 0):
        stopped_after(0, checkpoint, tmp_path)
        lines = journal.read_bytes().splitlines()
        assert filled - 100 <= sum(stop - start for _, _, start, stop in map(shard, lines)) < filled
        assert [record.levelname for record in caplog.records].count("WARNING") == 2 * damaged, caplog.messages
        caplog.clear()


def test_rows_damaged_before_the_bank_is_written_are_noticed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    store, close = tmp_path / "banks", partial.PartialBank.__exit__

    def spoil(self: partial.PartialBank, *error: object) -> None:
        close(self, *error)
        flip_bit(self.path / "test.safetensors", -5)
        flip_bit(self.path / "val.safetensors", 90)  # a label or the header: restored

    with monkeypatch.context() as patch:
        patch.setattr(partial.PartialBank, "__exit__", spoil)
        with pytest.raises(StorageError, match=r"50 images in test\.safetensors do not match .* run the same command"):
            extracted(checkpoint, store)
    path, reports = extracted(checkpoint, store)
    assert reports[0][0] == TOTAL - 50
    assert bytes_of(path) == bytes_of(expected)


def test_an_extraction_killed_before_the_bank_is_written_is_not_repeated(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")

    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(extract, "write_bank", stop)
        with pytest.raises(Stop):
            extracted(checkpoint, tmp_path / "banks")
    path, reports = extracted(checkpoint, tmp_path / "banks")
    assert reports == [(TOTAL, TOTAL, f"resumed after {TOTAL} of {TOTAL} images")]
    assert bytes_of(path) == bytes_of(expected)


@pytest.mark.parametrize("change", ["batch_size", "threads"])
def test_settings_that_change_bits_are_not_mixed(checkpoint: Path, tmp_path: Path, change: str) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    other = FEATURES.model_copy(update={"batch_size": 7}) if change == "batch_size" else FEATURES
    stopped_after(300, checkpoint, tmp_path / "banks", features=other, threads=2 if change == "threads" else None)
    path, reports = extracted(checkpoint, tmp_path / "banks")
    assert reports[0] == (
        0,
        TOTAL,
        f"restarted: the interrupted extraction used {change} {7 if change == 'batch_size' else 2}",
    )
    assert bytes_of(path) == bytes_of(expected)


def test_one_of_two_concurrent_calls_waits_and_names_the_owner(checkpoint: Path, tmp_path: Path) -> None:
    bank, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    store, reports = tmp_path / "banks", list[tuple[int, int, str]]()
    waits = threading.Event()

    def report(done: int, total: int, note: str) -> None:
        reports.append((done, total, note))
        waits.set()

    found: list[Path] = []
    other = threading.Thread(
        target=lambda: found.append(build_bank(DIGITS, checkpoint, FEATURES, store, report=report))
    )
    with exclusive(store / bank.name, lambda who: None):
        other.start()
        assert waits.wait(60)
        time.sleep(0.1)
        assert not found
    other.join()
    assert "waiting for process " in reports[0][2]
    assert found[0].name == bank.name
    assert bytes_of(found[0]) == bytes_of(bank)


def test_two_processes_build_one_bank(checkpoint: Path, tmp_path: Path) -> None:
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    store = tmp_path / "banks"
    command = [sys.executable, extraction.__file__, str(checkpoint), str(store), "0"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {one.communicate()[0].strip() for one in both} == {str(store / expected.name)}
    assert [entry.name for entry in store.iterdir()] == [expected.name]
    assert bytes_of(store / expected.name) == bytes_of(expected)


def test_a_disk_that_is_too_small_is_reported_before_anything_is_extracted(
    checkpoint: Path, small_disk: Callable[[str], Path]
) -> None:
    disk, reports = small_disk("64k"), list[int]()
    with pytest.raises(StorageError, match=r"cannot write .*\.partial: the disk is full; free some space"):
        build_bank(DIGITS, checkpoint, FEATURES, disk, report=lambda done, *_: reports.append(done))
    assert reports == []
    assert list(disk.iterdir()) == []


def test_an_extraction_resumes_after_others_filled_the_disk(
    checkpoint: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """Neither the journal fits nor what closing it writes again."""
    expected, _ = extracted(checkpoint, tmp_path / "uninterrupted")
    disk = small_disk("4m")
    others = disk / "others"

    def fill(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        with contextlib.suppress(OSError), others.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        return extractor.run(wanted)

    with pytest.raises(StorageError, match=r"cannot write .*\.partial: the disk is full; free some space"):
        extracted(checkpoint, disk, workers=fill)
    others.unlink()
    assert bytes_of(extracted(checkpoint, disk)[0]) == bytes_of(expected)


def test_a_bank_is_hard_linked_where_possible_and_copied_otherwise(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes: list[int] = []
    finished = partial.PartialBank.finished

    def spy(self: partial.PartialBank, kept: Any) -> dict[str, Path]:
        files = finished(self, kept)
        inodes.extend(file.stat().st_ino for file in files.values())
        return files

    monkeypatch.setattr(partial.PartialBank, "finished", spy)
    path, _ = extracted(checkpoint, tmp_path / "linked")
    assert inodes == [(path / f"{name}.safetensors").stat().st_ino for name in ("train", "val", "test")]

    def refuse(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    copied, _ = extracted(checkpoint, tmp_path / "copied")
    assert bytes_of(copied) == bytes_of(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_allocated_file_equals_the_one_that_safetensors_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"features": torch.randn(2, 7, 3).to(dtype), "labels": torch.arange(7)}
    save_file(tensors, tmp_path / "written")
    allocate(tmp_path / "allocated", {"labels": tensors["labels"]}, {"features": (dtype, (2, 7, 3))})
    with (tmp_path / "allocated").open("r+b") as opened:
        opened.seek(tensor_offsets(tmp_path / "allocated")["features"])
        opened.write(tensors["features"].numpy().tobytes())
    assert (tmp_path / "allocated").read_bytes() == (tmp_path / "written").read_bytes()
    assert tensor_offsets(tmp_path / "allocated") == tensor_offsets(tmp_path / "written")


def test_a_resumed_bank_opens(checkpoint: Path, tmp_path: Path) -> None:
    stopped_after(700, checkpoint, tmp_path)
    bank = open_bank(extracted(checkpoint, tmp_path)[0])
    assert bank.train_features.shape == (2, 369, 16)
    bank.check()
