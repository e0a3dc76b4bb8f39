"""Lines and files of another sweep, and places that are taken by something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.written_ledgers import (
    IDENTITY,
    append,
    assert_repaired,
    assert_true,
    files,
    flip,
    line_of,
    only,
)

from lt_train.core.errors import LongtailError, StorageError
from lt_train.core.io import digest
from sweeps.store.ledger import Ledger, LedgerReader
from sweeps.store.lines import with_check


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
