"""Ray's worker processes, as the operating system shows them: Ray writes into the title which method one is in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psutil

__all__ = ["in_a_pack"]


def in_a_pack(processes: Iterable[psutil.Process] | None = None) -> Iterator[psutil.Process]:
    """Those of the processes, by default of all on this machine, that train a pack now."""
    for process in processes if processes is not None else psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "Trainable.train" in title:
            yield process
