"""Timing: warm-up, interleaved repeats, the rate of a matrix product, and a description of the machine.

A ratio is the median over pairs of times. Both times of a pair are measured in one process, one directly after the
other, so that other load on the machine affects both sides. All times are kept in the result.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from banks import small_bank
from settings import BATCH_SIZE, Settings

from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run

__all__ = ["OtherProcesses", "describe_machine", "interleaved", "matrix_product_rate", "ratio", "seconds_of", "warm_up"]


def warm_up(device: str) -> None:
    """Train once with both engines: first calls load kernels, allocate memory and import modules of torch."""
    runs = [Run(METHODS.parse({"kind": "los"}), TrainingSpec(epochs=1, batch_size=BATCH_SIZE), seed=0)]
    for engine in (reference, fused):
        engine.fit(small_bank(), runs, device)


def seconds_of(action: Callable[[], Any], device: str) -> float:
    """Wall time of one call, including work that is queued on the device."""
    _synchronize(device)
    start = time.perf_counter()
    action()
    _synchronize(device)
    return time.perf_counter() - start


def interleaved(
    sides: Mapping[str, Callable[[], Any]], repeats: int, device: str, *, first: bool = False
) -> dict[str, list[float]]:
    """Times of every side in seconds, measured in turns. With `first`, every side runs once before that, untimed."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    if first:
        for action in sides.values():
            action()
    for _ in range(repeats):
        for name, action in sides.items():
            times[name].append(seconds_of(action, device))
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of `slow / fast` over the pairs."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def matrix_product_rate(size: int, device: str, repeats: int = 10) -> float:
    """GFLOP/s of a float32 product of two square matrices, the best of `repeats`."""
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    best = min(seconds_of(lambda: torch.mm(left, right), device) for _ in range(repeats))
    return 2 * size**3 / best / 1e9


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Hardware and software that the results depend on."""
    cuda = torch.device(settings.device).type == "cuda"
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": settings.threads,
        "device": torch.cuda.get_device_name(settings.device) if cuda else "cpu",
        "tf32": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class OtherProcesses:
    """CPU time that unrelated processes use during a measurement; Linux only."""

    def __init__(self) -> None:
        self.start = self._times()

    def cpu_share(self) -> float | None:
        """Their share of all CPU time since construction, 0 to 1; None if unknown."""
        if self.start is None:
            return None
        (busy, total, own), (busy0, total0, own0) = self._times(), self.start
        return max(0.0, busy - busy0 - (own - own0)) / max(total - total0, 1e-9)

    @staticmethod
    def _times() -> Any:
        """Seconds over all cores: busy, total, and of this process with its children."""
        file = Path("/proc/stat")
        if not file.exists():
            return None
        user, nice, system, idle, waiting, *rest = map(int, file.read_text().split("\n")[0].split()[1:9])
        own = os.times()
        tick = os.sysconf("SC_CLK_TCK")
        busy = user + nice + system + sum(rest)
        return busy / tick, (busy + idle + waiting) / tick, sum(own[:4])


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
