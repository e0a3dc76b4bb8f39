"""Every fault once, at a random moment; the committed table has every fault five times and no failure."""

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
from support.cluster import LocalCluster

ERROR_COUNTS = ("lost", "twice", "doubled", "missing", "left_running")


@pytest.fixture(scope="module")
def table(cluster: LocalCluster) -> Iterator[Table]:
    with contextlib.closing(Table(cluster, seed=int(time.time()))) as table:
        yield table


@pytest.mark.parametrize("row", ROWS)
def test_a_disturbed_sweep_has_the_result_of_an_undisturbed_one(row: str, table: Table) -> None:
    if row.startswith("disk full") and os.geteuid():
        pytest.skip("root is required to mount a small file system")
    count = table.run(row)
    assert count.passed, f"seed {table.seed}: {count.note or count}"


def test_in_the_committed_table_every_fault_passed_five_times() -> None:
    document = json.loads((Path(__file__).parents[2] / "tools" / "faults" / "latest.json").read_text())
    rows = {row["row"]: row for row in document["rows"]}
    assert list(rows) == list(ROWS)
    for row in rows.values():
        assert row["repeats"] == row["same_winner"] >= 5, row
        assert [row[name] for name in ERROR_COUNTS] == [0] * len(ERROR_COUNTS), row
        assert row["runs"] == row["repeats"] * 31, row
