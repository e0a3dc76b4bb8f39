"""The ledger: what it records, two drivers, heads, and every kind of damage."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ledgers import pack_lines

from lt_train.core.errors import LongtailError, StorageError
from lt_train.core.io import digest
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult, SelectedHead
from sweeps.config.trials import Trial
from sweeps.store.lease import LeaseLost
from sweeps.store.ledger import Ledger, LedgerReader
from sweeps.store.lines import with_check
from sweeps.store.records import Record, RunArrays, SweepEnd, run_key


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


# What is recorded


def test_appended_results_are_read_back(tmp_path: Path):
    ledger = Ledger(tmp_path)
    records = append(ledger, "a", "k0", "k1", results=[result(0.25), result(failure="diverged")], seconds=1.5)
    ledger.close()
    reopened = Ledger(tmp_path)
    assert reopened.runs == {"k0": records[0], "k1": records[1]}
    good, failed = records
    assert (good.status, good.epochs, good.epoch, good.failure, good.pack) == ("finished", 1, 0, None, "a")
    assert good.test == good.val == (0.25, None, 0.25, 0.25)
    assert good.loma_cv == pytest.approx(1 / 3)
    assert (failed.status, failed.failure, failed.epoch, failed.test) == ("failed", "diverged", -1, None)
    assert reopened.train_seconds == 1.5
    assert reopened.head("k0")["weight"].tolist() == [[0.25] * 3] * 2
    reopened.close()


def test_curves_and_values_by_class_are_read_back(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0", "k1", results=[replace(result(0.1), val_accuracy=None), result(failure="diverged")])
    arrays, failed = ledger.arrays("k0"), ledger.arrays("k1")
    assert arrays.val is None
    assert failed.val is not None
    np.testing.assert_array_equal(arrays.test, [[0.1, np.nan, 0.1, 0.1]])  # with the decimals of the lines
    assert arrays.loss.tolist() == [np.inf]
    np.testing.assert_array_equal(arrays.class_accuracy, [0.1, np.nan])
    assert arrays.loma.tolist() == [2.0, 1.0]
    np.testing.assert_array_equal(arrays.regularised_std, [0.5, np.nan])
    assert failed.class_accuracy.size == failed.loma.size == failed.regularised_std.size == 0
    assert ledger.runs["k0"].val is None
    ledger.close()


def test_a_run_has_one_line_with_its_trial_and_metrics(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0", "k1", results=[result(0.25), result(failure="diverged")])
    ledger.close()
    lines = [json.loads(text) for text in ledger.path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["driver", "run", "run", "pack"]
    assert lines[0]["format"] == 1
    first, second, pack = lines[1:]
    about = {"trial": "search-0000", "phase": "search", "method": "los", "number": 0, "method.lr": 0.01}
    assert about.items() <= first.items()
    assert {"seed": 0, "status": "finished", "epochs": 1, "epoch": 1, "key": "k0", "pack": "a"}.items() <= first.items()
    assert (first["acc_all"], first["acc_many"], first["val_acc_few"]) == (0.25, None, 0.25)
    assert {"seed": 1, "status": "failed", "failure": "diverged", "epoch": None}.items() <= second.items()
    assert "acc_all" not in second
    assert pack["runs"] == 2
    assert (tmp_path / "packs" / f"a.{pack['arrays']}.safetensors").is_file()
    assert (tmp_path / "heads" / f"a.{pack['heads']}.safetensors").is_file()


def test_trials_are_recorded_once(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.propose([(trial(0, 0, 1), ["k0", "k1"]), (trial(1, 0), ["k2"])], "optuna 5.0.0")
    ledger.propose([(trial(0, 0, 1), ["k0", "k1"])], "optuna 6.0.0")
    ledger.propose([(trial(2, 0), ["k3"])])
    ledger.close()
    read = LedgerReader(tmp_path)
    found = read.trials
    assert list(found) == ["search-0000", "search-0001", "search-0002"]
    assert read.proposed_with == ["optuna 5.0.0"]
    one = found["search-0000"]
    assert (one.phase, one.method, one.number, one.keys) == ("search", "los", 0, ("k0", "k1"))
    assert one.params == {"method.lr": 0.01}
    assert ledger.path.read_text().count('"event":"trial"') == 3


def test_the_end_is_recorded_until_something_is_added(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0")
    ledger.finish({"total": 2.0}, ["a note"])
    ledger.close()
    again = Ledger(tmp_path)
    assert again.end == SweepEnd({"total": 2.0}, ("a note",))
    again.finish({"total": 0.1}, ["a note"])  # nothing was trained since, so the first times are kept
    assert again.end == SweepEnd({"total": 2.0}, ("a note",))
    append(again, "b", "k1")
    assert again.end is None
    again.finish({"total": 3.0}, [])
    again.close()
    assert LedgerReader(tmp_path).end == SweepEnd({"total": 3.0}, ())


def test_a_stopped_run_is_recorded_without_its_head(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0", "k1", results=[result(), replace(result(0.75), stopped=5)])
    ledger.close()
    reopened = Ledger(tmp_path)
    assert (reopened.runs["k0"].stopped, reopened.runs["k1"].stopped) == (None, 5)
    assert reopened.runs["k1"].status == "stopped"
    assert reopened.runs["k1"].test == (0.75, None, 0.75, 0.75)
    assert reopened.head("k0")
    assert reopened.head("k1") == {}
    reopened.close()


def test_a_pack_without_heads_has_no_file_for_them(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0", results=[result(failure="diverged")])
    ledger.close()
    reopened = Ledger(tmp_path)
    assert not list((tmp_path / "heads").iterdir())
    assert not reopened.is_head_lost("k0")
    with pytest.raises(LongtailError, match="has no head of run k0: it failed or was stopped early"):
        reopened.head("k0")
    reopened.close()


# Two drivers


def test_a_driver_that_was_replaced_cannot_append(tmp_path: Path):
    old = Ledger(tmp_path, driver="old")
    append(old, "a", "k0")
    new = Ledger(tmp_path, driver="new")
    before = new.path.read_bytes()
    with pytest.raises(LeaseLost, match=r"ledger\.jsonl is now written by another driver"):
        append(old, "b", "k1")
    assert new.path.read_bytes() == before
    append(new, "b", "k1", results=[result(0.75)])
    assert [line["term"] for line in pack_lines(tmp_path)] == [1, 2]
    drivers = [json.loads(line).get("driver") for line in new.path.read_text().splitlines()]
    assert drivers == ["old", None, None, "new", None, None]
    old.close()
    new.close()


def test_lines_with_an_older_term_are_ignored(tmp_path: Path):
    """As if the takeover had happened between the check and the write. The next driver restores such a pack."""
    old = Ledger(tmp_path)
    append(old, "a", "k0")
    new = Ledger(tmp_path)
    old._size = new.path.stat().st_size  # its check has passed
    (late,) = append(old, "b", "k1")
    append(new, "c", "k2")  # the newer driver continues
    old.close()
    new.close()
    assert list(LedgerReader(tmp_path).runs) == ["k0", "k2"]
    assert not LedgerReader(tmp_path).damage
    reopened = Ledger(tmp_path)
    assert list(reopened.runs) == ["k0", "k2", "k1"]
    assert reopened.runs["k1"] == late
    append(reopened, "d", "k3")
    reopened.close()
    assert list(LedgerReader(tmp_path).runs) == ["k0", "k2", "k1", "k3"]


def test_a_pack_that_two_drivers_trained_is_kept_once(tmp_path: Path):
    old = Ledger(tmp_path)
    new = Ledger(tmp_path)
    with pytest.raises(LeaseLost):
        append(old, "b", "k1")
    old.close()
    (record,) = append(new, "b", "k1", seconds=2.0)  # the seconds differ, so the file does
    new.close()
    assert len(list((tmp_path / "packs").iterdir())) == 2
    reopened = Ledger(tmp_path)
    assert len(list((tmp_path / "packs").iterdir())) == 1
    assert reopened.runs == {"k1": record}
    assert reopened.arrays("k1")
    assert reopened.head("k1")
    assert reopened.train_seconds == 2.0
    reopened.close()


class Lease:
    """A lease that may be lost."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise LeaseLost("ann has taken over")


def test_a_lost_lease_is_noticed_before_anything_is_written(tmp_path: Path):
    lease = Lease()
    ledger = Ledger(tmp_path, lease.check)
    before = ledger.path.read_bytes()
    lease.lost = True
    for write in (
        lambda: append(ledger, "a", "k0"),
        lambda: ledger.propose([(trial(0), ["k0"])]),
        lambda: ledger.finish({}, []),
    ):
        with pytest.raises(LeaseLost, match="ann has taken over"):
            write()
    assert not [*(tmp_path / "heads").iterdir(), *(tmp_path / "packs").iterdir()]
    assert ledger.path.read_bytes() == before
    ledger.close()


def test_a_driver_without_the_lease_can_neither_begin_a_term_nor_repair(tmp_path: Path):
    new = Ledger(tmp_path)
    late = Lease()
    late.lost = True
    (tmp_path / "packs" / "a.staged").write_bytes(b"being written")
    before = new.path.read_bytes()
    with pytest.raises(LeaseLost, match="ann has taken over"):
        Ledger(tmp_path, late.check)
    assert new.path.read_bytes() == before
    assert (tmp_path / "packs" / "a.staged").exists()
    append(new, "a", "k0")
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
        append(new, "b", "k1")
        new.close()
        raise OSError(errno.EIO, "it hung for too long")

    monkeypatch.setattr(os, "fsync", hang)
    with pytest.raises(StorageError, match="it hung for too long"):
        old.propose([(trial(0), ["k0"])])
    old.close()
    assert list(LedgerReader(tmp_path).runs) == ["k1"]
    assert not LedgerReader(tmp_path).damage


# Heads


def test_heads_are_dropped_per_pack(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0", "k1")
    append(ledger, "b", "k2")
    ledger.drop_heads(["k0", "k2"])
    assert ledger.head("k0")["weight"].shape == (2, 3)  # its pack holds k1, which may still win
    assert [ledger.is_head_lost(key) for key in ("k0", "k1", "k2")] == [False, False, True]
    with pytest.raises(LongtailError, match=r"heads/b\..*\.safetensors is missing or altered; `lt-sweep resume"):
        ledger.head("k2")
    ledger.drop_heads(["k1"])  # k0 was dropped before
    with pytest.raises(LongtailError, match=r"heads/a\..*\.safetensors is missing"):
        ledger.head("k1")
    ledger.close()


def test_a_pack_that_is_trained_again_for_its_heads_replaces_its_lines(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0", seconds=1.0)
    ledger.drop_heads(["k0"])
    (second,) = append(ledger, "a", "k0", seconds=2.0)
    ledger.close()
    assert len(list((tmp_path / "packs").iterdir())) == 1
    reopened = Ledger(tmp_path)
    assert reopened.runs == {"k0": second}
    assert reopened.train_seconds == 2.0
    assert reopened.head("k0")
    assert reopened.arrays("k0")
    reopened.close()


# Keys, a full disk, reading


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
    disk = small_disk("64k")
    ledger = Ledger(disk)

    def append_forever() -> None:
        for number in range(1000):
            append(ledger, f"p{number}", f"k{number}")

    with pytest.raises(StorageError, match=r"cannot write .*the disk is full; free some space") as caught:
        append_forever()
    assert str(disk) in str(caught.value)
    appended = len(ledger.runs)
    assert appended > 0
    ledger.close()
    assert ledger.path.read_bytes().endswith(b"\n")
    assert [line["pack"] for line in pack_lines(disk)] == [f"p{number}" for number in range(appended)]
    assert not LedgerReader(disk).damage
    for head in list((disk / "heads").glob("*"))[:3]:
        head.unlink()
    reopened = Ledger(disk)
    restored = len(reopened.runs)
    assert restored in (appended, appended + 1)  # the file of the last pack may have been complete
    append(reopened, "after", "kafter")
    assert len(reopened.runs) == restored + 1
    reopened.close()


def test_finished_runs_are_read_without_changes(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0", "k1", results=[result(0.25), result(0.75)], seconds=1.5)
    with ledger.path.open("ab") as file:
        file.write(b'{"event":"run","term":1,"trial":"cut sh')  # a driver in the middle of a write
    (tmp_path / "packs" / "b.staged").write_bytes(b"being written")
    before = files(tmp_path)
    seen = LedgerReader(tmp_path)
    assert seen.runs == ledger.runs
    assert seen.damage == []
    assert seen.train_seconds == 1.5
    assert seen.head("k1")["weight"].tolist() == [[0.75] * 3] * 2
    assert files(tmp_path) == before
    assert LedgerReader(tmp_path / "nothing").runs == {}
    assert not (tmp_path / "nothing").exists()
    ledger.close()


# Damage

IDENTITY = {"sweep_id": "abc", "started_ms": 17, "spec": {"name": "small", "search": {"trials": 3}}}

KEYS = {"p0": ("k0", "k1"), "p1": ("k2", "k3"), "p2": ("k4", "k5")}
"""Keys of the runs by pack."""

PROPOSED = [(trial(number, 0, 1), keys) for number, keys in enumerate(KEYS.values())]


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep with 3 packs of 2 runs. A run failed, with bytes that may become newlines."""
    return finished(tmp_path_factory.mktemp("original"), IDENTITY)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of another sweep with the same trials, packs and keys."""
    return finished(tmp_path_factory.mktemp("other"), IDENTITY | {"sweep_id": "def"})


def finished(directory: Path, identity: dict[str, Any]) -> Path:
    ledger = Ledger(directory, driver="ann", identity=identity)
    ledger.propose(PROPOSED)
    for number, (name, keys) in enumerate(KEYS.items()):
        results = [result(0.1 + number / 8), result(failure="J*-M") if name == "p1" else result(0.3 + number / 8)]
        append(ledger, name, *keys, results=results, seconds=number + 0.5)
    ledger.finish({"total": 3.0}, ["a note"])
    ledger.close()
    return directory


@pytest.fixture(scope="module")
def true(original: Path) -> LedgerReader:
    """What is recorded there."""
    return LedgerReader(original)


@pytest.fixture
def copy(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be damaged. Nothing is synced, to save time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Path(shutil.copytree(original, tmp_path / "copy"))


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


def test_a_wrong_number_is_never_read_and_no_run_is_lost(copy: Path, original: Path, true: LedgerReader):
    """Whichever bit of the ledger flips, and wherever it is cut."""
    stream, content = random.Random(0), (original / "ledger.jsonl").read_bytes()
    flips = [flipped(content, stream.randrange(len(content)), stream.randrange(8)) for _ in range(300)]
    cuts = [content[: stream.randrange(len(content))] for _ in range(40)]
    for number, damaged in enumerate([*flips, *cuts, content[:-1]]):
        (copy / "ledger.jsonl").write_bytes(damaged)
        seen = LedgerReader(copy)
        if number < len(flips):
            assert seen.damage
        else:  # a cut within the lines of one pack is that of a crash
            assert all("packs are missing" in one for one in seen.damage)
        assert_true(seen, true)
        assert_repaired(copy, true)


def test_every_bit_of_a_newline_may_flip(copy: Path, original: Path, true: LedgerReader):
    """The lines that are joined so are read nevertheless."""
    content = (original / "ledger.jsonl").read_bytes()
    for end in (place for place, byte in enumerate(content) if byte == ord("\n")):
        for bit in range(8):
            (copy / "ledger.jsonl").write_bytes(flipped(content, end, bit))
            seen = LedgerReader(copy)
            assert len(seen.damage) == 1
            assert (seen.runs, seen.trials, seen.end) == (true.runs, true.trials, true.end)
    assert_repaired(copy, true)


@pytest.mark.parametrize("overwritten", [b"\0" * 10, b"\n" * 10, b'{"event"', b""])
def test_a_line_after_a_damaged_end_is_read(overwritten: bytes, copy: Path, original: Path, true: LedgerReader):
    content = (original / "ledger.jsonl").read_bytes()
    _, start = line_of(content, "run", 2)
    (copy / "ledger.jsonl").write_bytes(content[: start - 10] + overwritten + content[start:])
    seen = LedgerReader(copy)
    assert seen.damage
    assert seen.runs.keys() == true.runs.keys() - {"k0", "k1"}  # their `pack` line was before it
    assert_true(seen, true)
    assert_repaired(copy, true)


@pytest.mark.parametrize(
    ("text", "offset", "bit"),
    [
        (b'"acc_all":0.1', 12, 0),
        (b'"acc_all":0.1', 10, 1),
        (b'"seed":1', 7, 0),
        (b'"epochs":1', 9, 1),
        (b'"number":1', 9, 0),
        (b'"method.lr":0.02', 15, 0),
        (b'"key":"k2"', 8, 0),
        (b'"pack":"p1"', 9, 0),
        (b'"runs":2', 7, 0),
        (b'"seconds":1.5', 10, 1),
        (b'"term":1', 7, 1),
        (b'"event":"run"', 2, 0),
        (b'"check":"', 9, 0),
        (b"J*-M", 0, 6),  # a newline
        (b"J*-M", 1, 5),  # a newline
        (b"J*-M", 2, 5),  # a carriage return
        (b"J*-M", 3, 6),  # a carriage return
        (b"J*-M", 3, 7),  # not UTF-8
    ],
)
def test_one_flipped_bit_is_noticed(
    text: bytes, offset: int, bit: int, copy: Path, true: LedgerReader, caplog: pytest.LogCaptureFixture
):
    file = copy / "ledger.jsonl"
    place = file.read_bytes().index(text) + offset
    flip(file, place, bit)
    seen = LedgerReader(copy)
    number = file.read_bytes()[: place + 1].count(b"\n") + 1
    assert seen.damage[-1] == f"line {number}"
    assert len(seen.damage) == (2 if file.read_bytes()[place] == ord("\n") else 1)
    assert_true(seen, true)
    damaged = file.read_bytes().split(b"\n")[number - 1]
    with caplog.at_level(logging.WARNING):
        assert_repaired(copy, true)
    assert f"{copy} was damaged: ledger.jsonl (" in caplog.text
    assert f"line {number}" in caplog.text
    assert damaged in (copy / "damaged" / "ledger.jsonl").read_bytes().split(b"\n")


@pytest.mark.parametrize("event", ["driver", "sweep", "trial", "run", "pack", "finished"])
def test_a_damaged_line_costs_what_it_holds(event: str, copy: Path, true: LedgerReader):
    file = copy / "ledger.jsonl"
    number, start = line_of(file.read_bytes(), event)
    flip(file, start + 40)
    seen = LedgerReader(copy)
    assert seen.damage == [f"line {number}"]
    lost = {"k0", "k1"} if event in ("run", "pack") else set()  # both runs of the pack
    assert seen.runs.keys() == true.runs.keys() - lost
    assert seen.trials.keys() == true.trials.keys() - ({"search-0000"} if event == "trial" else set())
    assert seen.identity == (None if event == "sweep" else IDENTITY)
    assert seen.end == (None if event in ("trial", "run", "pack", "finished") else true.end), "it counts what it ends"
    assert_true(seen, true)
    assert_repaired(copy, true)


def test_the_line_of_a_trial_is_restored_from_the_packs_of_its_runs(copy: Path, true: LedgerReader):
    """It is not proposed again, which another version of Optuna may do differently."""
    file = copy / "ledger.jsonl"
    flip(file, line_of(file.read_bytes(), "trial")[1] + 40)
    Ledger(copy, identity=IDENTITY).close()
    restored = LedgerReader(copy).trials["search-0000"]
    assert restored == true.trials["search-0000"]
    assert restored.at_ms == true.trials["search-0000"].at_ms


def test_a_ledger_that_lacks_several_packs_is_damaged(copy: Path, true: LedgerReader, caplog: pytest.LogCaptureFixture):
    """It was cut between two lines. An interrupted driver leaves one pack at most whose lines are not written."""
    file = copy / "ledger.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: line_of(content, "run", 4)[1]])
    assert LedgerReader(copy).damage == []
    file.write_bytes(content[: line_of(content, "run", 2)[1]])
    assert LedgerReader(copy).damage == ["lines of 2 packs are missing"]
    assert_repaired(copy, true)
    assert f"{copy} was damaged: ledger.jsonl (lines of 2 packs are missing). It is repaired: 4 runs" in caplog.text
    assert "damaged/" not in caplog.text


def test_a_restored_pack_is_reported(copy: Path, caplog: pytest.LogCaptureFixture):
    file = copy / "ledger.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: line_of(content, "run", 4)[1]])
    Ledger(copy, identity=IDENTITY).close()
    assert f"2 runs were missing from {file}: 2 runs were restored from packs/" in caplog.text


def test_a_ledger_without_its_end_is_damaged_if_there_is_a_result(copy: Path, true: LedgerReader):
    file, result = copy / "ledger.jsonl", copy / "result.json"
    content = file.read_bytes()
    file.write_bytes(content[: line_of(content, "finished")[1]])
    assert LedgerReader(copy).damage == []
    result.touch()
    assert LedgerReader(copy).damage == ["its end is missing"]
    assert_repaired(copy, true)
    assert not result.exists(), "it is written again at the end of the sweep"
    file.write_bytes(content)
    result.touch()
    assert LedgerReader(copy).damage == []
    assert_repaired(copy, true)
    assert result.exists()


def test_a_message_names_five_damaged_lines_at_most(copy: Path, caplog: pytest.LogCaptureFixture):
    (copy / "ledger.jsonl").write_bytes(b"no line\n" * 100)
    Ledger(copy, identity=IDENTITY).close()
    assert "ledger.jsonl (line 1, line 2, line 3, line 4, line 5 and 95 more). It is repaired: 6 runs" in caplog.text


def test_a_ledger_of_another_format_is_refused_and_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr("sweeps.store.ledger.FORMAT", 2)
        Ledger(tmp_path).close()
    content = (tmp_path / "ledger.jsonl").read_bytes()
    for read in (Ledger, LedgerReader):
        with pytest.raises(LongtailError, match="has format 2, and this version of the program has format 1"):
            read(tmp_path)
    assert (tmp_path / "ledger.jsonl").read_bytes() == content


def test_a_cut_end_is_that_of_a_crash_wherever_it_is(copy: Path, original: Path, true: LedgerReader):
    """At every length of the lines of the last pack."""
    content, file = (original / "ledger.jsonl").read_bytes(), copy / "ledger.jsonl"
    _, first = line_of(content, "run", 4)
    _, end = line_of(content, "finished")
    for length in range(first, end + 1):
        file.write_bytes(content[:length])
        seen = LedgerReader(copy)
        whole = length >= end - 1  # only the last newline is missing
        assert (seen.damage, seen.end) == ([], None)
        assert seen.runs.keys() == true.runs.keys() - (set() if whole else set(KEYS["p2"]))
        assert_true(seen, true)
        if length % 5 == 0 or whole:
            assert_repaired(copy, true)


@pytest.mark.parametrize("lost", ["missing", "empty", "zeros", "text", "half"])
def test_everything_is_restored_from_the_files_of_packs(lost: str, copy: Path, true: LedgerReader):
    file = copy / "ledger.jsonl"
    content = file.read_bytes()
    kept = {"empty": b"", "zeros": bytes(len(content)), "text": b"no\nledger\n", "half": content[len(content) // 2 :]}
    if lost == "missing":
        file.unlink()
    else:
        file.write_bytes(kept[lost])
    assert_true(LedgerReader(copy), true)
    assert_repaired(copy, true)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing", "a directory"])
def test_a_damaged_file_in_packs_costs_its_runs(
    how: str, copy: Path, true: LedgerReader, caplog: pytest.LogCaptureFixture
):
    file = only(copy / "packs", "p1")
    damage(file, how)
    seen = LedgerReader(copy)
    for key in KEYS["p1"]:
        with pytest.raises(LongtailError, match=rf"{file} is missing or altered; `lt-sweep resume {copy}` trains"):
            seen.arrays(key)
    assert same_arrays(seen.arrays("k0"), true.arrays("k0"))
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(copy, identity=IDENTITY)
    assert f"{copy} was damaged: packs/{file.name}" in caplog.text
    assert "It is repaired: 2 runs are trained again" in caplog.text
    assert "; replaced lines and files are in damaged/" in caplog.text
    assert (copy / "damaged" / file.name).exists() == (how != "missing")
    assert ledger.runs.keys() == true.runs.keys() - set(KEYS["p1"])
    assert_true(ledger, true)
    assert ledger.end is None
    append(ledger, "p1", *KEYS["p1"], results=[result(0.225), result(failure="J*-M")], seconds=1.5)
    ledger.close()
    again = Ledger(copy)
    assert {key: replace(one, at_ms=0) for key, one in again.runs.items()} == {
        key: replace(one, at_ms=0) for key, one in true.runs.items()
    }
    assert all(same_arrays(again.arrays(key), true.arrays(key)) for key in true.runs)
    assert again.head("k2")
    again.close()


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing", "a directory"])
def test_a_damaged_file_in_heads_costs_its_heads(
    how: str, copy: Path, true: LedgerReader, caplog: pytest.LogCaptureFixture
):
    file = only(copy / "heads", "p1")
    damage(file, how)
    with pytest.raises(LongtailError, match=rf"{file} is missing or altered; `lt-sweep resume {copy}` trains"):
        LedgerReader(copy).head("k2")
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(copy, identity=IDENTITY)
    assert (f"was damaged: heads/{file.name}" in caplog.text) == (how != "missing")
    assert (copy / "damaged" / file.name).exists() == (how != "missing")
    assert ledger.runs == true.runs
    assert [key for key in true.runs if ledger.is_head_lost(key)] == list(KEYS["p1"])
    append(ledger, "p1", *KEYS["p1"], results=[result(0.225), result(failure="J*-M")])
    assert not ledger.is_head_lost("k2")
    assert ledger.head("k2")["weight"].tolist() == true.head("k2")["weight"].tolist()
    ledger.close()


class Crash(BaseException):
    """The process is killed."""


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    match how:
        case "flipped":
            flip(file, len(content) // 2)
        case "cut":
            file.write_bytes(content[:-1])
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case "a directory":
            file.unlink()
            file.mkdir()
            (file / "inside").touch()


@pytest.mark.parametrize("place", ["packs", "heads"])
def test_any_flipped_bit_of_a_file_is_noticed(place: str, copy: Path):
    file, seen, stream = only(copy / place, "p0"), LedgerReader(copy), random.Random(0)
    content = file.read_bytes()
    for _ in range(100):
        file.write_bytes(flipped(content, stream.randrange(len(content)), stream.randrange(8)))
        with pytest.raises(LongtailError, match="is missing or altered"):
            seen.arrays("k0") if place == "packs" else seen.head("k0")
    file.write_bytes(content)
    assert seen.arrays("k0") if place == "packs" else seen.head("k0")


def test_a_damaged_file_is_not_restored_from(copy: Path, true: LedgerReader):
    """Both copies of the lines of a pack are damaged."""
    flip(only(copy / "packs", "p1"), 30)
    (copy / "ledger.jsonl").unlink()
    ledger = Ledger(copy)
    assert ledger.runs.keys() == true.runs.keys() - set(KEYS["p1"])
    assert_true(ledger, true)
    ledger.close()


@pytest.mark.parametrize("place", ["packs", "heads"])
@pytest.mark.parametrize("name", ["p3.staged", ".p3.staged.abc.tmp"])
def test_an_unfinished_file_is_removed(
    place: str, name: str, copy: Path, true: LedgerReader, caplog: pytest.LogCaptureFixture
):
    (copy / place / name).write_bytes(b"half a pack")
    with caplog.at_level(logging.WARNING):
        assert_repaired(copy, true)
    assert not (copy / place / name).exists()
    assert not (copy / "damaged").exists()
    assert "damaged" not in caplog.text, "a crash does not count as damage"


@pytest.mark.parametrize("place", ["packs", "heads"])
def test_a_file_of_someone_else_is_left_alone(place: str, copy: Path, true: LedgerReader):
    (copy / place / "notes.txt").write_text("mine")
    assert_repaired(copy, true)
    assert (copy / place / "notes.txt").read_text() == "mine"


def test_an_unfinished_directory_is_removed(copy: Path, true: LedgerReader):
    (copy / "packs" / "p3.staged").mkdir()
    (copy / "packs" / "p3.staged" / "inside").touch()
    assert_repaired(copy, true)
    assert not (copy / "packs" / "p3.staged").exists()


def test_heads_of_a_pack_that_was_not_written_are_removed(
    copy: Path, true: LedgerReader, monkeypatch: pytest.MonkeyPatch
):
    """A crash between the file of the heads and that of the pack."""
    ledger = Ledger(copy)

    def crash(*arguments: Any) -> str:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr("sweeps.store.ledger.save_arrays", crash)
        with pytest.raises(Crash):
            append(ledger, "p3", "k6")
    ledger.close()
    assert only(copy / "heads", "p3").exists()
    assert_repaired(copy, true)
    assert not list((copy / "heads").glob("p3.*"))


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_none(
    copy: Path, true: LedgerReader, monkeypatch: pytest.MonkeyPatch
):
    ledger, write, calls = Ledger(copy), os.write, 0
    before = ledger.path.read_bytes()

    def fill(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:100])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fill)
        with pytest.raises(StorageError, match=r"ledger\.jsonl: the disk is full; free some space"):
            append(ledger, "p3", "k6")
    assert ledger.path.read_bytes() == before
    assert ledger.runs == true.runs
    (record,) = append(ledger, "p3", "k6")
    ledger.close()
    assert LedgerReader(copy).runs == {**true.runs, "k6": record}
    assert LedgerReader(copy).damage == []


def test_a_pack_whose_lines_were_not_written_is_restored(copy: Path, true: LedgerReader, tmp_path: Path):
    """A crash between its file and its lines."""
    content = (copy / "ledger.jsonl").read_bytes()
    (copy / "ledger.jsonl").write_bytes(content[: line_of(content, "run", 4)[1]])
    assert_repaired(copy, true)


def test_dropped_heads_are_not_restored(copy: Path, true: LedgerReader):
    ledger = Ledger(copy)
    ledger.drop_heads(KEYS["p0"])
    ledger.close()
    (copy / "ledger.jsonl").unlink()
    restored = Ledger(copy)
    assert restored.runs == true.runs
    assert restored.is_head_lost("k0")
    assert not restored.is_head_lost("k4")
    restored.close()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Crash()], ids=["full", "killed"])
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "replace"])
def test_a_repair_that_ends_early_loses_nothing(
    error: BaseException, call: str, original: Path, true: LedgerReader, tmp_path: Path
):
    """At the first, the second, ... call, until it succeeds."""
    lost = 0
    while lost < 100:
        directory = Path(shutil.copytree(original, tmp_path / str(lost)))
        content = (directory / "ledger.jsonl").read_bytes()
        for event in ("trial", "run", "pack", "finished"):
            flip(directory / "ledger.jsonl", line_of(content, event)[1] + 40)
        flip(only(directory / "heads", "p2"), 100)
        (directory / "packs" / "p2.staged").touch()
        succeeded = opens_with(error, call, lost, directory)
        seen = LedgerReader(directory)
        assert_true(seen, true)
        assert seen.end is None
        ledger = Ledger(directory, identity=IDENTITY)
        assert ledger.runs == true.runs
        assert_true(ledger, true)
        assert ledger.is_head_lost("k4")
        ledger.close()
        if succeeded:
            break
        lost += 1
    assert 0 < lost < 100


def opens_with(error: BaseException, call: str, after: int, directory: Path) -> bool:
    """Open a ledger where every call of a function fails after some calls; whether it could be opened."""
    place: Any = os if call in ("write", "fsync") else Path
    real, calls = getattr(place, call), 0

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return real(*args)

    stopped: BaseException | None = None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(place, call, fail)
        try:
            Ledger(directory).close()
        except (Crash, StorageError) as caught:
            stopped = caught
    if isinstance(stopped, StorageError):
        assert "the disk is full; free some space" in str(stopped)
    return calls <= after


def test_a_driver_that_dies_after_a_repair_leaves_an_unfinished_sweep(copy: Path, true: LedgerReader):
    """Else a trial that is missing now would be missing in the result."""
    file = copy / "ledger.jsonl"
    flip(file, line_of(file.read_bytes(), "trial", 1)[1] + 40)  # its runs are those of another trial
    Ledger(copy, identity=IDENTITY).close()
    seen = LedgerReader(copy)
    assert len(seen.trials) == 2
    assert (seen.damage, seen.end) == ([], None)
    assert_repaired(copy, true)


# Files of another sweep, and files that are not what their names say


@pytest.mark.parametrize("event", ["driver", "sweep", "trial", "run", "pack", "finished"])
@pytest.mark.parametrize("how", ["added", "instead"])
def test_a_line_of_another_sweep_is_left_out(event: str, how: str, copy: Path, other: Path, true: LedgerReader):
    file = copy / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    number, _ = line_of(b"".join(lines), event)
    foreign = (other / "ledger.jsonl").read_bytes().splitlines(keepends=True)[number - 1]
    lines[number - 1 : number if how == "instead" else number - 1] = [foreign]
    file.write_bytes(b"".join(lines))
    seen = LedgerReader(copy, "abc")
    assert seen.damage == [f"line {number} (of another sweep)"]
    assert_true(seen, true)
    assert_repaired(copy, true)
    assert foreign in (copy / "damaged" / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def test_the_ledger_of_another_sweep_is_refused_and_not_changed(copy: Path, other: Path):
    shutil.copy2(other / "ledger.jsonl", copy)
    before = files(copy)
    with pytest.raises(LongtailError, match=r"ledger\.jsonl and sweep\.json beside it belong to different sweeps"):
        LedgerReader(copy, "abc")
    with pytest.raises(LongtailError, match="belong to different sweeps"):
        Ledger(copy, identity=IDENTITY)
    assert files(copy) == before


@pytest.mark.parametrize("with_ledger", [True, False], ids=["with the ledger", "without the ledger"])
def test_a_file_in_packs_that_is_not_of_this_sweep_is_set_aside(
    with_ledger: bool, copy: Path, other: Path, true: LedgerReader, caplog: pytest.LogCaptureFixture
):
    """The file of another sweep, one with the name of another pack, one without lines, and an empty one."""
    foreign = only(other / "packs", "p1")
    assert foreign.name != only(copy / "packs", "p1").name
    own, head = only(copy / "packs", "p0"), only(copy / "heads", "p0")
    renamed = own.name.replace("p0", "p9")
    empty = f"p7.{digest(b'')}.safetensors"
    names = {foreign.name, renamed, head.name.replace("p0", "p8"), empty}
    shutil.copy2(foreign, copy / "packs")
    shutil.copy2(own, copy / "packs" / renamed)
    shutil.copy2(head, copy / "packs" / head.name.replace("p0", "p8"))
    (copy / "packs" / empty).touch()
    if not with_ledger:
        (copy / "ledger.jsonl").unlink()
    assert_repaired(copy, true)
    assert names <= {file.name for file in (copy / "damaged").iterdir()}
    assert all(f"packs/{name}" in caplog.text for name in names)


@pytest.mark.parametrize("field", ["runs", "arrays", "seconds", "term"])
def test_a_sound_line_that_cannot_be_understood_counts_as_damaged(field: str, copy: Path, true: LedgerReader):
    """As another version of the program may write it."""
    file = copy / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    number, _ = line_of(b"".join(lines), "pack")
    document = json.loads(lines[number - 1])
    del document["check"], document[field]
    lines[number - 1] = with_check(document)
    file.write_bytes(b"".join(lines))
    assert LedgerReader(copy).damage == [f"line {number} (not understood)"]
    assert_repaired(copy, true)


def test_a_ledger_that_is_emptied_while_it_is_written_stops_its_driver(tmp_path: Path):
    ledger = Ledger(tmp_path)
    append(ledger, "a", "k0")
    ledger.path.write_bytes(b"")
    with pytest.raises(StorageError, match="was changed by another program"):
        append(ledger, "b", "k1")
    ledger.close()
    again = Ledger(tmp_path)
    assert again.runs.keys() == {"k0", "k1"}
    again.close()


# A directory in the place of a file, and the reverse


def test_a_directory_in_the_place_of_the_ledger_is_named(copy: Path):
    (copy / "ledger.jsonl").unlink()
    (copy / "ledger.jsonl").mkdir()
    with pytest.raises(LongtailError, match=r"ledger\.jsonl cannot be read \(Is a directory\)"):
        LedgerReader(copy)
    with pytest.raises(StorageError, match=r"ledger\.jsonl must be a file, but it is a directory; move it away"):
        Ledger(copy)


@pytest.mark.parametrize("place", ["packs", "heads"])
def test_a_file_in_the_place_of_a_directory_is_named(place: str, copy: Path):
    shutil.rmtree(copy / place)
    (copy / place).write_text("a file")
    seen = LedgerReader(copy)
    with pytest.raises(LongtailError, match="is missing or altered"):
        seen.arrays("k0") if place == "packs" else seen.head("k0")
    with pytest.raises(StorageError, match=rf"{copy / place} must be a directory, but it is a file; move it away"):
        Ledger(copy)
    assert (copy / place).read_text() == "a file"


def test_a_file_in_the_place_of_damaged_is_named(copy: Path):
    (copy / "damaged").write_text("a file")
    flip(only(copy / "heads", "p0"), 100)
    with pytest.raises(StorageError, match=rf"{copy / 'damaged'} must be a directory, but it is a file; move it"):
        Ledger(copy)
