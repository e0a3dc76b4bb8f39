"""The fault table: `python tools/faults`, or `make faults`. Every row five times at moments of chance; about an hour.

Figures go to latest.json, which is committed; the table is printed. Needs root (small file systems are mounted) and
PostgreSQL. One row: `--rows "node killed" --repeats 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]  # tests/support is shared

from faults.rows import ROWS
from faults.table import Table
from rich.console import Console
from rich.table import Table as RichTable
from support.world import a_world

HERE = Path(__file__).parent


def main() -> int:
    """Try the rows; 1 when one of them lost, doubled or changed anything."""
    parser = argparse.ArgumentParser(
        prog="tests/faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, default=5, help="of each row (default: 5)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments (default: the clock)")
    parser.add_argument("--out", type=Path, help="the JSON file (default: latest.json when all rows are tried)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lt-faults-") as name:
        place = Path(name)
        place.chmod(0o711)  # PostgreSQL's own user passes through
        with a_world(place) as world, contextlib.closing(Table(world, given.seed)) as table:
            for row in given.rows:
                for number in range(given.repeats):
                    count = table.run(row)
                    verdict = "sound" if count.sound else f"NOT SOUND: {count.note or count}"
                    print(f"{row}, {number + 1} of {given.repeats}: {count.seconds} s, {verdict}", flush=True)
    document = table.document()
    out = given.out or (HERE / "latest.json" if set(given.rows) == set(ROWS) else None)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")
    show(document)
    sound = all(count.sound for counts in table.counts.values() for count in counts)
    return 0 if sound else 1


def show(document: dict[str, object]) -> None:
    """The table, a line a row."""
    names = (
        "row",
        "repeats",
        "runs",
        "lost",
        "twice",
        "doubled",
        "missing",
        "left_running",
        "same_winner",
        "felt",
        "drivers",
    )
    table = RichTable(*names, title="fault table")
    rows = document["rows"]
    assert isinstance(rows, list)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
