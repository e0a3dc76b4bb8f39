"""Each row of the fault table once, at a moment of chance; and the committed table, of five times each, is whole."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.rows import ROWS
from faults.table import Table
from support.world import World

SPOILED = ("lost", "twice", "doubled", "missing", "left_running")


@pytest.fixture(scope="module")
def table(world: World) -> Iterator[Table]:
    with contextlib.closing(Table(world, seed=int(time.time()))) as table:
        yield table


@pytest.mark.parametrize("row", ROWS)
def test_a_sweep_comes_to_the_same_whatever_dies(row: str, table: Table) -> None:
    if row.startswith("disk full") and os.geteuid():
        pytest.skip("only root can mount a small file system")
    count = table.run(row)
    assert count.sound, f"seed {table.seed}: {count.note or count}"


def test_the_committed_table_has_every_row_five_times_and_every_attempt_sound() -> None:
    document = json.loads((Path(__file__).parents[2] / "tools" / "faults" / "latest.json").read_text())
    rows = {row["row"]: row for row in document["rows"]}
    assert list(rows) == list(ROWS)
    for row in rows.values():
        assert row["repeats"] == row["same_winner"] >= 5, row
        assert [row[name] for name in SPOILED] == [0] * len(SPOILED), row
        assert row["runs"] == row["repeats"] * 31, row
