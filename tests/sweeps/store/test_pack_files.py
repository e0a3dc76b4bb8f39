"""Damaged, unfinished and foreign files of packs."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
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
    flipped,
    only,
    result,
    same_arrays,
)

from lt_train.core.errors import LongtailError
from sweeps.store.ledger import Ledger, LedgerReader


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
