"""Repairs that a crash or a full disk interrupts."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.written_ledgers import (
    IDENTITY,
    KEYS,
    Crash,
    append,
    assert_repaired,
    assert_true,
    flip,
    line_of,
    only,
)

from lt_train.core.errors import StorageError
from sweeps.store.ledger import Ledger, LedgerReader


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
