"""Reading a bank that is not in memory: the same rows, one window at a time, in file order."""

import ctypes
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lt_train.features import files

ROWS, DIM = 5_000, 37


@pytest.fixture
def features() -> Iterator[Tensor]:
    """`[N, D]` in a file, mapped read-only as a bank is, whose pages are not in memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp" if Path("/var/tmp").is_dir() else None) as place:
        yield cold(Path(place) / "features")


def cold(path: Path) -> Tensor:
    torch.arange(ROWS * DIM, dtype=torch.float32).numpy().tofile(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    mapped.madvise(mmap.MADV_RANDOM)  # read only the requested pages
    array: np.ndarray = np.frombuffer(mapped, dtype=np.float32).reshape(ROWS, DIM)
    features = torch.from_numpy(array)
    if files.in_memory(features):
        pytest.skip("this file system keeps its files in memory")
    return features


def batches_of(count: int = 300, size: int = 11) -> list[Tensor]:
    """Random rows, some of them twice, in batches `[1, n]`; the last one is short."""
    stream = torch.Generator().manual_seed(0)
    return list(torch.randint(ROWS, (1, count * size - 4), generator=stream).split(size, dim=1))


def test_rows_are_in_memory_after_they_were_read(features: Tensor) -> None:
    assert not files.in_memory(features)
    assert float(features.sum()) > 0
    assert files.in_memory(features)


def test_tensors_of_this_process_are_in_memory() -> None:
    assert files.in_memory(torch.ones(3, 5))
    assert files.in_memory(torch.ones(0, 5))


def test_without_mincore_all_rows_count_as_in_memory(features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_libc", lambda: None)
    assert files.in_memory(features)


def test_if_mincore_fails_all_rows_count_as_in_memory(features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def mincore(*_: object) -> int:
            return ctypes.c_int(-1).value

    monkeypatch.setattr(files, "_libc", Refusing)
    assert files.in_memory(features)


@pytest.mark.parametrize("rows_per_window", [1, 11, 100, 1_000_000])
def test_windows_give_the_rows_of_an_index(
    features: Tensor, rows_per_window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows smaller than a batch, of one batch, of some and of all."""
    monkeypatch.setattr(files, "WINDOW_BYTES", 4 * DIM * rows_per_window)
    monkeypatch.setattr(files, "PASSES", ROWS * 2)
    fetched: list[Tensor] = []
    fetch = files._fetch

    def noted(table: Tensor, window: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        rows, places = fetch(table, window)
        fetched.append(rows)
        return rows, places

    monkeypatch.setattr(files, "_fetch", noted)
    batches = batches_of()
    for batch, rows in zip(batches, files.read_batches(features, batches), strict=True):
        assert torch.equal(rows, features[batch.flatten()])
    assert sum(map(len, fetched)) == sum(map(torch.numel, batches))
    assert max(map(len, fetched)) <= max(rows_per_window, 11)
    for rows in fetched:
        assert bool((rows[1:, 0] >= rows[:-1, 0]).all()), "rows must be in file order"


def test_a_large_file_gets_larger_windows(features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOW_BYTES", 1)
    monkeypatch.setattr(files, "PASSES", 4)
    sizes = [sum(map(torch.numel, window)) for window in files._windows(features, batches_of())]
    assert len(sizes) == 3  # 3296 rows requested, 5000/4 per window


def test_rows_in_memory_use_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_fetch", None)
    table, batches = torch.randn(ROWS, DIM), batches_of(3)
    assert all(
        torch.equal(rows, table[batch[0]])
        for batch, rows in zip(batches, files.read_batches(table, batches), strict=True)
    )


def test_the_reader_thread_ends_when_reading_stops_early(features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOW_BYTES", 4 * DIM * 20)
    monkeypatch.setattr(files, "PASSES", ROWS)
    reading = files.read_batches(features, batches_of())
    next(reading)
    assert any(thread.name.startswith("bank") for thread in threading.enumerate())
    reading.close()  # as a for loop does when it is left by an error
    assert not any(thread.name.startswith("bank") for thread in threading.enumerate())


def test_an_error_in_the_reader_is_raised_to_the_caller(features: Tensor) -> None:
    with pytest.raises(IndexError, match="out of range"):
        list(files.read_batches(features, [torch.tensor([0, ROWS])]))
