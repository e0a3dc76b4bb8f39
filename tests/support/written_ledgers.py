"""Ledgers with three packs, written by the code under test, to be read, damaged and repaired."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Pack, RunResult, SelectedHead
from sweeps.config.trials import Trial
from sweeps.store.ledger import Ledger, LedgerReader
from sweeps.store.records import Record, RunArrays


def result(value: float = 0.5, failure: str | None = None) -> RunResult:
    row = np.array([[value, np.nan, value, value]], dtype=np.float32)
    kept = SelectedHead(
        0,
        np.array([value, np.nan], dtype=np.float32),
        np.array([2.0, 1.0], dtype=np.float32),
        np.array([0.5, np.nan], dtype=np.float32),
        {"weight": np.full((2, 3), value, dtype=np.float32), "bias": np.zeros(2, dtype=np.float32)},
    )
    return RunResult(row, row, np.array([np.inf], dtype=np.float32), None if failure else kept, failure)


def trial(number: int, *seeds: int) -> Trial:
    values = {"method.lr": 0.01 * (number + 1)}
    method = METHODS.parse({"kind": "los", "lr": values["method.lr"]})
    return Trial(f"search-{number:04d}", "search", number, values, method, TrainingSpec(), seeds or (0,), "los")


def append(
    ledger: Ledger, name: str, *keys: str, results: list[RunResult] | None = None, seconds: float = 1.0
) -> list[Record]:
    """Record a pack with one run per key, all of one trial."""
    one = trial(0, *range(len(keys)))
    pack = Pack(name, tuple(one.runs()), EpochSelection())
    return ledger.append(pack, [one] * len(keys), keys, results or [result() for _ in keys], seconds)


IDENTITY = {"sweep_id": "abc", "started_ms": 17, "spec": {"name": "small", "search": {"trials": 3}}}

KEYS = {"p0": ("k0", "k1"), "p1": ("k2", "k3"), "p2": ("k4", "k5")}
"""Keys of the runs by pack."""

PROPOSED = [(trial(number, 0, 1), keys) for number, keys in enumerate(KEYS.values())]


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def finished(directory: Path, identity: dict[str, Any]) -> Path:
    ledger = Ledger(directory, driver="ann", identity=identity)
    ledger.propose(PROPOSED)
    for number, (name, keys) in enumerate(KEYS.items()):
        results = [result(0.1 + number / 8), result(failure="J*-M") if name == "p1" else result(0.3 + number / 8)]
        append(ledger, name, *keys, results=results, seconds=number + 0.5)
    ledger.finish({"total": 3.0}, ["a note"])
    ledger.close()
    return directory


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def flip(file: Path, place: int, bit: int = 0) -> None:
    file.write_bytes(flipped(file.read_bytes(), place, bit))


def line_of(content: bytes, event: str, number: int = 0) -> tuple[int, int]:
    """The number of a line, from 1, and the place of its first byte."""
    texts = content.splitlines(keepends=True)
    index = [place for place, text in enumerate(texts) if json.loads(text)["event"] == event][number]
    return index + 1, sum(map(len, texts[:index]))


def only(directory: Path, pack: str) -> Path:
    """The file of a pack in `packs` or `heads`."""
    (file,) = directory.glob(f"{pack}.*")
    return file


def same_arrays(one: RunArrays, other: RunArrays) -> bool:
    names = [field.name for field in fields(RunArrays)]
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in names)


def assert_true(found: LedgerReader, true: LedgerReader) -> None:
    """Everything that is found is as it was recorded."""
    assert found.runs.items() <= true.runs.items()
    assert found.trials.items() <= true.trials.items()
    assert found.end in (None, true.end)
    assert found.identity in (None, true.identity)
    assert all(same_arrays(found.arrays(key), true.arrays(key)) for key in found.runs)


def assert_repaired(directory: Path, true: LedgerReader) -> None:
    """Opening the ledger for writing restores every run, and a sweep that is continued ends as the original did."""
    ledger = Ledger(directory, identity=IDENTITY)
    assert ledger.runs == true.runs
    assert ledger.damage == []
    assert_true(ledger, true)
    for key in true.runs:
        if true.runs[key].status == "finished":
            assert ledger.head(key)["weight"].tolist() == true.head(key)["weight"].tolist()
    ledger.propose(PROPOSED)
    ledger.finish({"total": 3.0}, ["a note"])
    ledger.close()
    again = LedgerReader(directory)
    assert again.damage == []
    assert (again.runs, again.trials) == (true.runs, true.trials)
    assert (again.identity, again.end) == (true.identity, true.end)
    assert again.train_seconds == true.train_seconds
    keys = [line["key"] for line in map(json.loads, again.path.read_text().splitlines()) if line["event"] == "run"]
    assert sorted(keys) == sorted(true.runs), "every run has one line, also for those who read the file as a table"


class Crash(BaseException):
    """The process is killed."""
