"""The ledger: what it records, two drivers, heads."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.ledgers import pack_lines
from support.written_ledgers import append, files, result, trial

from lt_train.core.errors import LongtailError, StorageError
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Halving, Run
from sweeps.store.lease import LeaseLost
from sweeps.store.ledger import Ledger, LedgerReader
from sweeps.store.records import SweepEnd, run_key


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
