"""Feature extraction in Ray processes: byte-identical to one process, also if a worker is killed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.extraction import DIGITS, FEATURES, TOTAL, bytes_of, write_checkpoint
from support.images import write_tree

from lt_train.core.errors import SpecError
from lt_train.datasets.base import DATASETS
from lt_train.features.extract import build_bank
from lt_train.features.shards import Extractor, Shard, ShardResult, Throughput
from lt_train.features.spec import FeaturesSpec
from sweeps.backends.workers import ray_workers
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.experiment.prepare import prepare

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "stage1.safetensors")


def test_workers_write_the_same_bytes_as_this_process(checkpoint: Path, tmp_path: Path, local_ray: str) -> None:
    expected = bytes_of(build_bank(DIGITS, checkpoint, FEATURES, tmp_path / "here"))
    for count in (1, 2):
        pace = Throughput()
        workers = ray_workers(count, cpus=1, gpus=0)
        store = tmp_path / f"by {count}"
        found = build_bank(DIGITS, checkpoint, FEATURES, store, workers=workers, threads=1, throughput=pace)
        assert bytes_of(found) == expected
        assert pace.images == TOTAL
        assert all(seconds > 0 for seconds in pace.seconds.values())


def test_workers_read_image_files_and_report_unreadable_ones(tmp_path: Path, local_ray: str) -> None:
    parts = {"train": {"auk": 9, "crow": 6}, "test": {"auk": 4, "crow": 4}}
    root = write_tree(tmp_path / "birds", parts)
    checkpoint = write_checkpoint(tmp_path / "stage1.safetensors", channels=3, classes=2)
    dataset = DATASETS.parse({"kind": "image_folder", "root": str(root), "size": 8, "in_memory": 0})
    data = dataset.load()
    (root / "train/crow/05.jpg").write_bytes(b"")
    features = FeaturesSpec(batch_size=2, unreadable="skip")
    here = build_bank(dataset, checkpoint, features, tmp_path / "here", data=data)
    workers = ray_workers(2, cpus=1, gpus=0)
    there = build_bank(dataset, checkpoint, features, tmp_path / "there", data=data, workers=workers, threads=1)
    assert bytes_of(there) == bytes_of(here)
    assert "train/crow/05.jpg" in (there / "manifest.json").read_text()


def workers_of_ray_data() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                yield process


def test_results_do_not_change_if_a_worker_is_killed(checkpoint: Path, tmp_path: Path, local_ray: str) -> None:
    small = FEATURES.model_copy(update={"batch_size": 4})  # some 130 shards
    expected = bytes_of(build_bank(DIGITS, checkpoint, small, tmp_path / "here"))
    killed: list[int] = []

    def kill_one(done: int, total: int, note: str) -> None:
        if not killed and done < total / 2:
            process = next(workers_of_ray_data())
            process.kill()
            killed.append(process.pid)

    workers = ray_workers(2, cpus=1, gpus=0)
    found = build_bank(DIGITS, checkpoint, small, tmp_path / "there", report=kill_one, workers=workers, threads=1)
    assert killed, "the test must have killed a worker"
    assert bytes_of(found) == expected


def test_workers_resume_an_extraction_that_this_process_began(checkpoint: Path, tmp_path: Path, local_ray: str) -> None:
    expected = bytes_of(build_bank(DIGITS, checkpoint, FEATURES, tmp_path / "undisturbed"))

    def some(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        yield from itertools.islice(extractor.run(wanted), 7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bank(DIGITS, checkpoint, FEATURES, tmp_path / "banks", workers=some)
    pace = Throughput()
    found = build_bank(
        DIGITS, checkpoint, FEATURES, tmp_path / "banks", workers=ray_workers(2, 1, 0), threads=1, throughput=pace
    )
    assert bytes_of(found) == expected
    assert 0 < pace.images < TOTAL - 7 * 50


def sweep(tmp_path: Path, checkpoint: Path, **sections: Any) -> SweepSpec:
    return load_resolved(
        {
            "version": 1,
            "name": "small",
            "dataset": "digits_lt",
            "backbone": {"kind": "small_cnn", "width": 4, "checkpoint": str(checkpoint)},
            "features": {"batch_size": 50},
            "method": "los",
            "search": {"trials": 1, "space": {"method.smooth_factor": {"uniform": [0.1, 0.9]}}},
            "tracking": "none",
            "storage": str(tmp_path / "runs"),
            **sections,
        }
    )


def test_the_number_of_workers_does_not_change_a_sweeps_bank(
    checkpoint: Path, tmp_path: Path, local_ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = sweep(tmp_path / "many", checkpoint, backend="ray", resources={"extract_workers": 2})
    one = sweep(tmp_path / "one", checkpoint, backend="ray")
    assert many.fingerprint() == one.fingerprint()
    found, expected = prepare(many), prepare(one)
    assert found.path is not None
    assert expected.path is not None
    assert bytes_of(found.path) == bytes_of(expected.path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an existing bank needs no worker")

    monkeypatch.setattr("sweeps.backends.workers.ray_workers", refuse)
    assert prepare(many).fingerprint == found.fingerprint


def test_the_inline_backend_refuses_extraction_workers(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(SpecError, match=r"resources\.extract_workers: must be 1 with backend inline"):
        sweep(tmp_path, checkpoint, backend="inline", resources={"extract_workers": 2})
