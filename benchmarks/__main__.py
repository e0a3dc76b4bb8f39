"""Benchmark suite: `python benchmarks`, or `make bench` and `make bench-quick`.

Parts: (a) the fused engine against a plain loop, for every method; (b) achieved arithmetic rate against the rate of the
hardware; (c) a complete sweep against Ray Tune with one trial per run; (d) growth of time and memory; (e) feature
extraction against the bare forward pass; (f) time and size of the report of a large sweep. Results of the full suite
are written to latest.json, or latest-cuda.json for a CUDA device. Quick and partial results are written to files that
git ignores. Run nothing else on the machine at the same time.
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
    """Measure, write one JSON file and print one table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SystemExit removes temporary directories
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", choices=LEVELS, default="full", help="how much to measure (default: full)")
    parser.add_argument("--quick", dest="level", action="store_const", const="quick", help="same as --level quick")
    parser.add_argument(
        "--parts", help=f"letters from {''.join(PARTS)}, for example bd (default: the parts of the level)"
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default_device, help=f"torch device (default here: {default_device})")
    parser.add_argument(
        "--threads", type=int, help="number of torch threads, and of CPUs for sweeps (default: all cores)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write (default: in the directory of this program)")
    arguments = parser.parse_args()
    if arguments.parts and not set(arguments.parts) <= set(PARTS):
        parser.error(f"--parts must consist of letters from {''.join(PARTS)}, got {arguments.parts}")
    settings = LEVELS[arguments.level].for_device(arguments.device)
    settings = replace(settings, threads=arguments.threads or settings.threads)
    parts = arguments.parts or settings.parts
    document = measure(settings, parts)
    complete = arguments.level == "full" and set(parts) == set(settings.parts)
    name = "latest" if complete else arguments.level + ("-" + "".join(parts) if arguments.parts else "")
    out = arguments.out or HERE / f"{name}{'' if arguments.device == 'cpu' else '-cuda'}.json"
    out.write_text(json.dumps(document, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    show(document, console)
    console.print(f"Wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
