"""Ray's worker processes as seen by the operating system. Ray puts the name of the running method into the title."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

import psutil
from support.cluster import RayWorker

__all__ = ["given_a_pack", "in_a_pack"]


def in_a_pack(processes: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    """The processes that are training a pack."""
    for process in processes:
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "Trainable.train" in title:
            yield process


def given_a_pack(node: RayWorker, others: Sequence[RayWorker], timeout: float = 30.0) -> bool:
    """Whether a node is given a pack in time. Packs on other nodes are suspended meanwhile, so that some are left."""
    suspended: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if any(in_a_pack(node.processes())):
                return True
            for process in in_a_pack(process for other in others for process in other.processes()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    suspended.setdefault(process.pid, process).suspend()
            time.sleep(0.3)  # listing processes is expensive, and the sweep needs the cores
        return False
    finally:
        for process in suspended.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
