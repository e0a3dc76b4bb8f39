"""Ray's worker processes, as the operating system shows them: Ray writes into the title which method one is in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

import psutil
from support.world import RayWorker

__all__ = ["given_a_pack", "in_a_pack"]


def in_a_pack(processes: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    """Those of the processes that train a pack now."""
    for process in processes:
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "Trainable.train" in title:
            yield process


def given_a_pack(node: RayWorker, others: Sequence[RayWorker], timeout: float = 30.0) -> bool:
    """Whether a node is given a pack in time; packs of the others stand still meanwhile, so that some are left."""
    held: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if any(in_a_pack(node.processes())):
                return True
            for process in in_a_pack(process for other in others for process in other.processes()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    held.setdefault(process.pid, process).suspend()
            time.sleep(0.3)  # looking through processes is work, and the sweep needs the cores
        return False
    finally:
        for process in held.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
