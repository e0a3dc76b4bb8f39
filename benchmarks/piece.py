"""Pieces of the suite, each in a process of its own: what one measures must not be changed by what another left behind.

`measured` is called by the suite and starts the process; the process calls `main`, which does the piece and prints its
JSON. The tiny level, which only tries the machinery, does everything in one process.
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

__all__ = ["NotMeasured", "main", "measured"]

PIECES = {
    # name: (module, function that takes the settings and the piece's own arguments, all JSON)
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


class NotMeasured(RuntimeError):
    """The process of a piece ended without a result; `code` is how (-9: killed), None that its time was over."""

    def __init__(self, name: str, code: int | None) -> None:
        self.code = code
        super().__init__(f"piece {name} of the benchmarks ended with {code}; see above")


def measured(name: str, settings: Settings, *, timeout: float | None = None, **arguments: Any) -> Any:
    """The result of one piece, which is given up after `timeout` seconds.

    Raises:
        NotMeasured: its process failed, was killed, or took longer.
    """
    if not settings.fresh_processes:
        return _do(name, settings, arguments)
    command = [sys.executable, __file__, name, settings.level, settings.device, str(settings.threads)]
    # OpenMP reads this when it is loaded; other libraries' threads would else take the cores too.
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    command.append(json.dumps(arguments))
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise NotMeasured(name, None) from None
    if done.returncode:
        raise NotMeasured(name, done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Do the piece that the command line names and print its JSON on the last line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing temporary is left behind
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PIECES)
    parser.add_argument("level", choices=LEVELS)
    parser.add_argument("device")
    parser.add_argument("threads", type=int)
    parser.add_argument("arguments", type=json.loads)
    given = parser.parse_args()
    settings = replace(LEVELS[given.level].on(given.device), threads=given.threads)
    print(json.dumps(_do(given.name, settings, given.arguments)))


def _do(name: str, settings: Settings, arguments: dict[str, Any]) -> Any:
    import torch

    torch.set_num_threads(settings.threads)
    module, function = PIECES[name]
    return getattr(importlib.import_module(module), function)(settings, **arguments)


if __name__ == "__main__":
    main()
