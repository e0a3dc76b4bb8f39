from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lt_train.core.errors import LongtailError, StorageError
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult, SelectedHead
from sweeps.store.lease import LeaseLost
from sweeps.store.ledger import FinishedRuns, Ledger, run_key


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


def pack(name: str, *seeds: int) -> Pack:
    method = METHODS.parse({"kind": "los"})
    return Pack(name, tuple(Run(method, TrainingSpec(), seed) for seed in seeds), EpochSelection())


def packs(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger that are packs."""
    return [line for line in map(json.loads, path.read_text().splitlines()) if "pack" in line]


def test_appended_results_are_read_back(tmp_path: Path):
    ledger = Ledger(tmp_path)
    records = ledger.append(pack("a", 0, 1), ["k0", "k1"], [result(0.25), result(failure="diverged")], 1.5)
    ledger.close()
    reopened = Ledger(tmp_path)
    assert reopened.finished == {"k0": records[0], "k1": records[1]}
    assert reopened.finished["k0"].test == [[0.25, None, 0.25, 0.25]]
    assert reopened.finished["k0"].loss == [None]
    assert reopened.finished["k0"].loma_cv == pytest.approx(1 / 3)
    assert reopened.finished["k1"].failure == "diverged"
    assert reopened.seconds["train"] == 1.5
    assert reopened.head("k0")["weight"].tolist() == [[0.25] * 3] * 2
    reopened.close()


def test_a_stopped_run_is_recorded_without_its_head(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append(pack("a", 0, 1), ["k0", "k1"], [result(), replace(result(0.75), stopped=5)], 1.0)
    ledger.close()
    reopened = Ledger(tmp_path)
    assert (reopened.finished["k0"].stopped, reopened.finished["k1"].stopped) == (None, 5)
    assert reopened.finished["k1"].test == [[0.75, None, 0.75, 0.75]]
    assert reopened.head("k0")
    assert reopened.head("k1") == {}
    reopened.close()


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_an_incomplete_last_line_is_overwritten(tmp_path: Path, cut: int):
    ledger = Ledger(tmp_path)
    ledger.append(pack("a", 0), ["k0"], [result()], 1.0)
    ledger.append(pack("b", 1), ["k1"], [result()], 1.0)
    ledger.close()
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-cut])
    reopened = Ledger(tmp_path)
    assert list(reopened.finished) == ["k0"]
    reopened.append(pack("b", 1), ["k1"], [result(0.75)], 1.0)
    reopened.close()
    last = Ledger(tmp_path)
    assert list(last.finished) == ["k0", "k1"]
    last.close()


@pytest.mark.parametrize(
    ("written", "damaged"),
    [
        (b'"runs"', b'"ruins"'),
        (b'"term":1', b'"term":null'),
        (b'"term":1', b'"term":true'),
        (b'"seconds":1.0', b'"second":1.0'),
        (b'"seconds":1.0', b'"seconds":null'),
        (b'"key":"kb"', b'"key":["kb"]'),
    ],
)
def test_a_damaged_line_is_reported_with_its_number(written: bytes, damaged: bytes, tmp_path: Path):
    ledger = Ledger(tmp_path)
    for name in ("a", "b", "c"):
        ledger.append(pack(name, 0), [f"k{name}"], [result()], 1.0)
    ledger.close()
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    assert written in lines[2]
    lines[2] = lines[2].replace(written, damaged)
    ledger.path.write_bytes(b"".join(lines))
    with pytest.raises(LongtailError, match=r"ledger\.jsonl:3: this line is damaged"):
        Ledger(tmp_path)
    with pytest.raises(LongtailError, match=r"ledger\.jsonl:3: this line is damaged"):
        FinishedRuns(tmp_path)
    ledger.path.write_bytes(b"".join([lines[0], lines[1], lines[3]]))
    repaired = Ledger(tmp_path)
    assert list(repaired.finished) == ["ka", "kc"]
    repaired.close()


# Two drivers


def test_a_driver_that_was_replaced_cannot_append(tmp_path: Path):
    old = Ledger(tmp_path, driver="old")
    old.append(pack("a", 0), ["k0"], [result()], 1.0)
    new = Ledger(tmp_path, driver="new")
    before = new.path.read_bytes()
    with pytest.raises(LeaseLost, match=r"ledger\.jsonl is now written by another driver"):
        old.append(pack("b", 1), ["k1"], [result()], 1.0)
    assert new.path.read_bytes() == before
    new.append(pack("b", 1), ["k1"], [result(0.75)], 1.0)
    assert [line["term"] for line in packs(new.path)] == [1, 2]
    drivers = [json.loads(line).get("driver") for line in new.path.read_text().splitlines()]
    assert drivers == ["old", None, "new", None]
    old.close()
    new.close()


def test_lines_with_an_older_term_are_ignored(tmp_path: Path):
    """As if the takeover had happened between the check and the write."""
    old = Ledger(tmp_path)
    old.append(pack("a", 0), ["k0"], [result()], 1.0)
    new = Ledger(tmp_path)
    old._end = new.path.stat().st_size  # its check has passed
    old.append(pack("b", 1), ["k1"], [result()], 1.0)
    new.append(pack("c", 2), ["k2"], [result()], 1.0)  # the newer driver continues
    old.close()
    new.close()
    reopened = Ledger(tmp_path)
    assert list(reopened.finished) == ["k0", "k2"]
    assert list(FinishedRuns(tmp_path).finished) == ["k0", "k2"]
    reopened.append(pack("b", 1), ["k1"], [result()], 1.0)
    reopened.close()
    assert list(FinishedRuns(tmp_path).finished) == ["k0", "k2", "k1"]


class Lease:
    """A lease that may be lost."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise LeaseLost("ann has taken over")


def test_a_lost_lease_is_noticed_before_anything_is_written(tmp_path: Path):
    lease = Lease()
    ledger = Ledger(tmp_path, lease.check)
    lease.lost = True
    with pytest.raises(LeaseLost, match="ann has taken over"):
        ledger.append(pack("a", 0), ["k0"], [result()], 1.0)
    assert not list((tmp_path / "heads").iterdir())
    assert packs(ledger.path) == []
    ledger.close()


def test_a_driver_without_the_lease_cannot_begin_a_term(tmp_path: Path):
    new = Ledger(tmp_path)
    late = Lease()
    late.lost = True
    with pytest.raises(LeaseLost, match="ann has taken over"):
        Ledger(tmp_path, late.check)
    new.append(pack("a", 0), ["k0"], [result()], 1.0)
    new.close()


def test_a_sync_that_fails_after_a_takeover_does_not_harm_the_newer_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A shared disk that hangs while another driver begins a term and finishes a pack."""
    lease, sync = Lease(), os.fsync
    old = Ledger(tmp_path, lease.check)

    def hang(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        lease.lost = True
        new = Ledger(tmp_path)
        new.append(pack("b", 1), ["k1"], [result()], 1.0)
        new.close()
        raise OSError(errno.EIO, "it hung for too long")

    monkeypatch.setattr(os, "fsync", hang)
    with pytest.raises(StorageError, match="it hung for too long"):
        old._write({"term": 1, "pack": "a", "at_ms": 0, "seconds": 1.0, "runs": []})
    old.close()
    assert list(FinishedRuns(tmp_path).finished) == ["k1"]


# Heads


def test_heads_are_dropped_per_pack(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append(pack("a", 0, 1), ["k0", "k1"], [result(), result()], 1.0)
    ledger.append(pack("b", 2), ["k2"], [result()], 1.0)
    ledger.drop_heads(["k0", "k2"])
    assert ledger.head("k0")["weight"].shape == (2, 3)  # its pack holds k1, which may still win
    with pytest.raises(LongtailError, match=r"head .*b\.safetensors is missing"):
        ledger.head("k2")
    ledger.drop_heads(["k0", "k1"])
    with pytest.raises(LongtailError, match=r"head .*a\.safetensors is missing"):
        ledger.head("k1")
    ledger.close()


def test_the_key_depends_on_what_determines_a_result_and_on_nothing_else():
    run = Run(METHODS.parse({"kind": "los"}), TrainingSpec(), 0)
    key = run_key("bank", run, EpochSelection())
    others = [
        run_key("other bank", run, EpochSelection()),
        run_key("bank", Run(METHODS.parse({"kind": "ce"}), TrainingSpec(), 0), EpochSelection()),
        run_key("bank", Run(METHODS.parse({"kind": "los", "lr": 1e-3}), TrainingSpec(), 0), EpochSelection()),
        run_key("bank", Run(run.method, TrainingSpec(epochs=3), 0), EpochSelection()),
        run_key("bank", Run(run.method, TrainingSpec(), 1), EpochSelection()),
        run_key("bank", run, EpochSelection("best", "val")),
        run_key("bank", run, EpochSelection("best", "test")),
        run_key("bank", run, EpochSelection(), Halving((5,))),
        run_key("bank", run, EpochSelection(), Halving((5,), 3.0)),
        run_key("bank", run, EpochSelection(), Halving((5, 10))),
        run_key("bank", run, EpochSelection("last", "test"), Halving((5,))),  # rungs compare trials on this set
        run_key("bank", run, EpochSelection(), None, "a-"),
    ]
    assert len({key, *others}) == 1 + len(others)
    assert run_key("bank", run, EpochSelection("last", "test")) == key  # the last epoch is the same on any set


def test_a_full_disk_loses_no_finished_run_and_leaves_no_partial_line(small_disk: Callable[[str], Path]):
    disk = small_disk("32k")
    ledger = Ledger(disk)

    def append_forever() -> None:
        for number in range(1000):
            ledger.append(pack(f"p{number}", 0), [f"k{number}"], [result()], 1.0)

    with pytest.raises(StorageError, match=r"cannot write .*the disk is full; free some space") as caught:
        append_forever()
    assert str(disk) in str(caught.value)
    appended = len(ledger.finished)
    assert appended > 0
    ledger.close()
    assert ledger.path.read_bytes().endswith(b"\n")
    assert [line["pack"] for line in packs(ledger.path)] == [f"p{number}" for number in range(appended)]
    for head in list((disk / "heads").glob("*"))[:2]:
        head.unlink()
    reopened = Ledger(disk)
    reopened.append(pack("after", 0), ["kafter"], [result()], 1.0)
    assert len(reopened.finished) == appended + 1
    reopened.close()


def test_finished_runs_are_read_without_changes(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append(pack("a", 0, 1), ["k0", "k1"], [result(0.25), result(0.75)], 1.5)
    with ledger.path.open("ab") as file:
        file.write(b'{"term":1,"pack":"cut sh')  # a driver in the middle of a write
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    seen = FinishedRuns(tmp_path)
    seen.drop_heads(["k0", "k1"])
    assert seen.finished == ledger.finished
    assert seen.seconds["train"] == 1.5
    assert seen.head("k1")["weight"].tolist() == [[0.75] * 3] * 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(AssertionError, match="is open for reading, not for writing"):
        seen.append(pack("b", 2), ["k2"], [result()], 1.0)
    assert FinishedRuns(tmp_path / "nothing").finished == {}
    assert not (tmp_path / "nothing").exists()
    ledger.close()
