"""Fault injection: `python tools/faults`, or `make faults`. Runs every fault five times; takes about an hour.

Each fault interrupts a sweep at a random moment. Results are written to latest.json, which is committed, and printed as
a table. Needs PostgreSQL, and root to mount small file systems. For one fault: `--rows "node killed" --repeats 1`.
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
from support.cluster import local_cluster

HERE = Path(__file__).parent
HEADINGS = {
    "row": "fault",
    "repeats": "repeats",
    "runs": "runs",
    "lost": "lost runs",
    "twice": "runs trained twice",
    "doubled": "duplicate MLflow runs",
    "missing": "missing MLflow runs",
    "left_running": "unfinished MLflow runs",
    "same_winner": "same result",
    "felt": "with an effect",
    "drivers": "drivers",
}
"""Key of a row -> heading of its column."""


def main() -> int:
    """Run the faults; returns 1 if any of them lost, duplicated or changed a result."""
    parser = argparse.ArgumentParser(
        prog="tools/faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        metavar="ROW",
        help=f"faults to run: {', '.join(ROWS)} (default: all)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="how often to run each fault (default: 5)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="seed of the random moments (default: current time)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write (default: latest.json if all faults are run)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lt-faults-") as name:
        place = Path(name)
        place.chmod(0o711)  # the user of PostgreSQL needs access to subdirectories
        with local_cluster(place) as cluster, contextlib.closing(Table(cluster, arguments.seed)) as table:
            for row in arguments.rows:
                for repeat in range(arguments.repeats):
                    count = table.run(row)
                    verdict = "passed" if count.passed else f"FAILED: {count.note or count}"
                    print(f"{row}, {repeat + 1} of {arguments.repeats}: {count.seconds} s, {verdict}", flush=True)
    document = table.document()
    out = arguments.out or (HERE / "latest.json" if set(arguments.rows) == set(ROWS) else None)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")
    show(document)
    passed = all(count.passed for counts in table.counts.values() for count in counts)
    return 0 if passed else 1


def show(document: dict[str, object]) -> None:
    """Print the table with one row per fault."""
    table = RichTable(*HEADINGS.values(), title="fault injection")
    rows = document["rows"]
    assert isinstance(rows, list)
    for row in rows:
        table.add_row(*(str(row[key]) for key in HEADINGS))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
