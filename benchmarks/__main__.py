"""The benchmarks: `python benchmarks`, or `make bench` and `make bench-quick`.

(a) a plain loop against the fused engine for every method, (b) arithmetic against the machine's own, (c) a whole sweep
against Ray Tune with one trial a run, (d) growth, (e) extraction against the bare forward pass, (f) the report of a
large sweep: `--parts f` alone says its seconds and bytes. Whole figures go to latest.json, those of a CUDA device to
latest-cuda.json; quick and partial ones to files that are not kept in git. Nothing else should run on the machine
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from report import show
from rich.console import Console
from settings import LEVELS
from suite import PARTS, measure

HERE = Path(__file__).parent


def main() -> int:
    """Measure, write one JSON, print one table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing temporary is left behind
    parser = argparse.ArgumentParser(
        prog="tests/benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", choices=LEVELS, default="full", help="how much is measured (default: full)")
    parser.add_argument("--quick", dest="level", action="store_const", const="quick", help="the same as --level quick")
    parser.add_argument("--parts", help=f"some of {''.join(PARTS)}, for example bd (default: those of the level)")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, help=f"torch device (default here: {there})")
    parser.add_argument("--threads", type=int, help="torch threads, and CPUs of the sweeps (default: all cores)")
    parser.add_argument("--out", type=Path, help="the JSON file (default: beside this program)")
    given = parser.parse_args()
    if given.parts and not set(given.parts) <= set(PARTS):
        parser.error(f"--parts must be some of {''.join(PARTS)}, got {given.parts}")
    settings = LEVELS[given.level].on(given.device)
    settings = replace(settings, threads=given.threads or settings.threads)
    parts = given.parts or settings.parts
    document = measure(settings, parts)
    whole = given.level == "full" and set(parts) == set(settings.parts)
    name = "latest" if whole else given.level + ("-" + "".join(parts) if given.parts else "")
    out = given.out or HERE / f"{name}{'' if given.device == 'cpu' else '-cuda'}.json"
    out.write_text(json.dumps(document, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    show(document, console)
    console.print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
