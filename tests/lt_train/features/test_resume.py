"""An extraction that was killed anywhere is gone on with, to the very bytes of one that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import random
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
from support.extraction import DIGITS, FEATURES, TOTAL, bytes_of, write_checkpoint

from lt_train.core.errors import StorageError
from lt_train.core.tensor_file import allocate, tensor_offsets
from lt_train.features import extract, partial
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.partial import alone
from lt_train.features.shards import Extractor, Shard, ShardResult

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "stage1.safetensors")


class Stop(Exception):
    pass


def stopped_after(images: int, checkpoint: Path, store: Path, **options: Any) -> None:
    """An extraction that somebody stops, in this process."""

    def report(done: int, total: int, note: str) -> None:
        if done >= images:
            raise Stop

    with pytest.raises(Stop):
        build_bank(DIGITS, checkpoint, options.pop("features", FEATURES), store, report=report, **options)


def told(checkpoint: Path, store: Path, **options: Any) -> tuple[Path, list[tuple[int, int, str]]]:
    said: list[tuple[int, int, str]] = []
    features = options.pop("features", FEATURES)
    return build_bank(DIGITS, checkpoint, features, store, report=lambda *one: said.append(one), **options), said


def test_killed_at_random_it_is_gone_on_with_to_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    expected = extraction.extract(checkpoint, tmp_path / "undisturbed")
    store, chance = tmp_path / "banks", random.Random(5)
    for kill_after in sorted(chance.sample(range(50, TOTAL - 50), 3)):
        command = [sys.executable, extraction.__file__, str(checkpoint), str(store), str(kill_after)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [entry.name for entry in store.iterdir()] == [f"{expected.name}.partial"]
    path, said = told(checkpoint, store)
    assert bytes_of(path) == bytes_of(expected)
    assert [entry.name for entry in store.iterdir()] == [path.name]
    done, total, note = said[0]
    assert total == TOTAL
    assert kill_after <= done < kill_after + 50, "what was listed before the last kill is not done again"
    assert note == f"resumed after {done} of {TOTAL} images"
    assert said[-1][0] == TOTAL
    assert "images/s" in said[-1][2]


def test_a_stop_in_good_order_loses_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Although what is done is listed every two seconds only."""
    stopped_after(500, checkpoint, tmp_path)
    _, said = told(checkpoint, tmp_path)
    assert said[0][0] >= 500


def test_a_line_that_was_cut_short_says_nothing(checkpoint: Path, tmp_path: Path) -> None:
    expected, _ = told(checkpoint, tmp_path / "undisturbed")
    store = tmp_path / "banks"
    stopped_after(500, checkpoint, store)
    (journal,) = store.glob("*.partial/journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines)[:-3])
    (data,) = store.glob("*.partial/train.safetensors")
    part, view, start, _ = json.loads(lines[-1])["shard"]
    assert part == "train"
    spoil = tensor_offsets(data)["features"] + (view * 369 + start) * 16 * 4
    with data.open("r+b") as opened:  # what the line was about never reached the disk
        opened.seek(spoil)
        opened.write(b"\xff" * 16)
    path, said = told(checkpoint, store)
    assert said[0][0] == sum(stop - start for _, _, start, stop in (json.loads(line)["shard"] for line in lines[:-1]))
    assert bytes_of(path) == bytes_of(expected)


def test_killed_while_the_bank_is_put_together_nothing_is_extracted_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = told(checkpoint, tmp_path / "undisturbed")

    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(extract, "write_bank", stop)
        with pytest.raises(Stop):
            told(checkpoint, tmp_path / "banks")
    path, said = told(checkpoint, tmp_path / "banks")
    assert said == [(TOTAL, TOTAL, f"resumed after {TOTAL} of {TOTAL} images")]
    assert bytes_of(path) == bytes_of(expected)


@pytest.mark.parametrize("change", ["batch_size", "threads"])
def test_what_may_change_bits_is_not_mixed(checkpoint: Path, tmp_path: Path, change: str) -> None:
    expected, _ = told(checkpoint, tmp_path / "undisturbed")
    other = FEATURES.model_copy(update={"batch_size": 7}) if change == "batch_size" else FEATURES
    stopped_after(300, checkpoint, tmp_path / "banks", features=other, threads=2 if change == "threads" else None)
    path, said = told(checkpoint, tmp_path / "banks")
    assert said[0] == (
        0,
        TOTAL,
        f"begun anew: what was half done was extracted with {change} {7 if change == 'batch_size' else 2}",
    )
    assert bytes_of(path) == bytes_of(expected)


def test_of_two_at_once_one_waits_and_says_for_whom(checkpoint: Path, tmp_path: Path) -> None:
    bank, _ = told(checkpoint, tmp_path / "undisturbed")
    store, said = tmp_path / "banks", list[tuple[int, int, str]]()
    waits = threading.Event()

    def report(done: int, total: int, note: str) -> None:
        said.append((done, total, note))
        waits.set()

    found: list[Path] = []
    other = threading.Thread(
        target=lambda: found.append(build_bank(DIGITS, checkpoint, FEATURES, store, report=report))
    )
    with alone(store / bank.name, lambda who: None):
        other.start()
        assert waits.wait(60)
        time.sleep(0.1)
        assert not found
    other.join()
    assert "waiting for process " in said[0][2]
    assert found[0].name == bank.name
    assert bytes_of(found[0]) == bytes_of(bank)


def test_two_processes_make_one_bank(checkpoint: Path, tmp_path: Path) -> None:
    expected, _ = told(checkpoint, tmp_path / "undisturbed")
    store = tmp_path / "banks"
    command = [sys.executable, extraction.__file__, str(checkpoint), str(store), "0"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {one.communicate()[0].strip() for one in both} == {str(store / expected.name)}
    assert [entry.name for entry in store.iterdir()] == [expected.name]
    assert bytes_of(store / expected.name) == bytes_of(expected)


def test_a_disk_without_room_for_all_is_told_before_anything_is_extracted(
    checkpoint: Path, small_disk: Callable[[str], Path]
) -> None:
    disk, said = small_disk("64k"), list[int]()
    with pytest.raises(StorageError, match=r"cannot write .*\.partial: the disk is full; free some space"):
        build_bank(DIGITS, checkpoint, FEATURES, disk, report=lambda done, *_: said.append(done))
    assert said == []
    assert list(disk.iterdir()) == []


def test_a_disk_that_others_fill_meanwhile_is_told_and_gone_on_with(
    checkpoint: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """The list of what was done no longer fits, nor does what closing it writes again."""
    expected, _ = told(checkpoint, tmp_path / "undisturbed")
    disk = small_disk("4m")
    others = disk / "others"

    def fill(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        with contextlib.suppress(OSError), others.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        return extractor.run(wanted)

    with pytest.raises(StorageError, match=r"cannot write .*\.partial: the disk is full; free some space"):
        told(checkpoint, disk, workers=fill)
    others.unlink()
    assert bytes_of(told(checkpoint, disk)[0]) == bytes_of(expected)


def test_a_bank_is_not_copied_where_the_disk_gives_a_file_two_names(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes: list[int] = []
    finished = partial.Partial.finished

    def spy(self: partial.Partial, kept: Any) -> dict[str, Path]:
        files = finished(self, kept)
        inodes.extend(file.stat().st_ino for file in files.values())
        return files

    monkeypatch.setattr(partial.Partial, "finished", spy)
    path, _ = told(checkpoint, tmp_path / "linked")
    assert inodes == [(path / f"{name}.safetensors").stat().st_ino for name in ("train", "val", "test")]

    def refuse(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    copied, _ = told(checkpoint, tmp_path / "copied")
    assert bytes_of(copied) == bytes_of(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_that_is_filled_later_is_the_one_that_the_library_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"features": torch.randn(2, 7, 3).to(dtype), "labels": torch.arange(7)}
    save_file(tensors, tmp_path / "theirs")
    allocate(tmp_path / "ours", {"labels": tensors["labels"]}, {"features": (dtype, (2, 7, 3))})
    with (tmp_path / "ours").open("r+b") as opened:
        opened.seek(tensor_offsets(tmp_path / "ours")["features"])
        opened.write(tensors["features"].numpy().tobytes())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert tensor_offsets(tmp_path / "ours") == tensor_offsets(tmp_path / "theirs")


def test_a_bank_opens_after_all_that(checkpoint: Path, tmp_path: Path) -> None:
    stopped_after(700, checkpoint, tmp_path)
    bank = open_bank(told(checkpoint, tmp_path)[0])
    assert bank.train_features.shape == (2, 369, 16)
    bank.check()
