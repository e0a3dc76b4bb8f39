"""Pieces of the suite, each in a separate process, so that no measurement affects another.

The suite calls `run_piece`, which starts the process. The process calls `main`, which runs the piece and prints its
result as JSON. The tiny level, which only tests the suite itself, runs everything in one process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

from settings import LEVELS, Settings

__all__ = ["PieceFailed", "main", "run_piece"]

PIECES = {
    # name: (module, function of the settings and JSON arguments)
    "machine": ("measure", "describe_machine"),
    "a": ("engines", "methods"),
    "b": ("engines", "arithmetic"),
    "c": ("sweeps_end_to_end", "end_to_end"),
    "d": ("growth", "growth"),
    "e": ("extraction", "extraction"),
    "f": ("page", "report"),
    "peak_memory": ("growth", "peak_memory"),
    "train_on": ("out_of_memory", "train_on"),
}


class PieceFailed(RuntimeError):
    """The process of a piece ended without a result; `code` is its exit code (-9: killed), None for a timeout."""

    def __init__(self, name: str, code: int | None) -> None:
        self.code = code
        super().__init__(f"piece {name} of the benchmarks ended with exit code {code}; its messages are above")


def run_piece(name: str, settings: Settings, *, timeout: float | None = None, **arguments: Any) -> Any:
    """The result of one piece; its process is killed after `timeout` seconds.

    Raises:
        PieceFailed: the process failed, was killed or exceeded the timeout.
    """
    if not settings.fresh_processes:
        return _call(name, settings, arguments)
    command = [sys.executable, __file__, name, settings.level, settings.device, str(settings.threads)]
    # OpenMP reads this when it is loaded. It also limits the threads of other libraries.
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    command.append(json.dumps(arguments))
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise PieceFailed(name, None) from None
    if done.returncode:
        raise PieceFailed(name, done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the piece named on the command line and print its JSON as the last line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SystemExit removes temporary directories
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PIECES)
    parser.add_argument("level", choices=LEVELS)
    parser.add_argument("device")
    parser.add_argument("threads", type=int)
    parser.add_argument("arguments", type=json.loads)
    arguments = parser.parse_args()
    settings = replace(LEVELS[arguments.level].for_device(arguments.device), threads=arguments.threads)
    print(json.dumps(_call(arguments.name, settings, arguments.arguments)))


def _call(name: str, settings: Settings, arguments: dict[str, Any]) -> Any:
    import torch

    torch.set_num_threads(settings.threads)
    module, function = PIECES[name]
    return getattr(importlib.import_module(module), function)(settings, **arguments)


if __name__ == "__main__":
    main()
