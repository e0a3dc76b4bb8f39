"""Damaged lines of a ledger: they are noticed, named and restored, and cost what they hold."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
from support.written_ledgers import (
    IDENTITY,
    KEYS,
    assert_repaired,
    assert_true,
    flip,
    flipped,
    line_of,
)

from lt_train.core.errors import LongtailError
from sweeps.store.ledger import Ledger, LedgerReader


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
