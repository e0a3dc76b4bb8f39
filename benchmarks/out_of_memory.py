"""Last part of (d): a bank that is larger than the memory of the process, against the same bank in memory.

The bank is memory-mapped from disk, as every bank is. The process runs in its own memory cgroup, which counts the pages
of the files that it reads and evicts them at the limit. If no cgroup can be created, the pages of the bank are only
dropped before each training, and the JSON contains that. Two banks of the same size are measured: `one view`, which is
read completely in the single epoch, and `views`, with one view for each of 20 epochs, as with augmentation. Two stacks
of lanes read at the same time, each in its own order. The result is the larger of both ratios; each is the median of
two measurements, the first of which is a cold start.
"""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from banks import generate
from engines import fit, make_runs
from measure import ratio, seconds_of, warm_up
from piece import PieceFailed, run_piece
from settings import PAPER_EPOCHS, Settings

from lt_train.features.files import bank_fingerprint, open_bank, write_bank
from lt_train.retrain import fused

__all__ = ["out_of_memory", "train_on"]

TIMEOUT_FACTOR, STARTUP_SECONDS = 4, 30
"""Timeout of training from the mapped bank: a multiple of the time in memory, plus seconds to start and open it."""

CGROUPS = (
    # root of the hierarchy, file that lists the enabled controllers, memory limit, swap limit
    (Path("/sys/fs/cgroup"), "cgroup.subtree_control", "memory.max", "memory.swap.max"),
    (Path("/sys/fs/cgroup/memory"), None, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
)


def out_of_memory(settings: Settings) -> tuple[float | None, dict[str, Any]]:
    """The ratio, None if training was killed at the limit, and its times."""
    if torch.device(settings.device).type != "cpu":
        return None, {"not_measured": "banks are copied to the device completely"}
    cases: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(dir=_disk_directory()) as place,
        _memory_group(settings.memory_limit_bytes) as group,
    ):
        for name, views in (("one view", 1), ("views", PAPER_EPOCHS)):
            path = _write(settings, views, Path(place))
            in_memory = _in_process(settings, path, None, views, timeout=None)
            if not in_memory["seconds"]:
                raise PieceFailed("train_on", in_memory["ended_with"])
            mapped = _in_process(
                settings, path, group, views, timeout=TIMEOUT_FACTOR * sum(in_memory["seconds"]) + STARTUP_SECONDS
            )
            case = {"views": views, "epochs": views, "in_memory": in_memory, "mapped": mapped}
            case["bank_bytes"] = sum(file.stat().st_size for file in path.iterdir())
            case["at_least"] = "given_up_after" in mapped
            seconds = [mapped["given_up_after"]] * len(in_memory["seconds"]) if case["at_least"] else mapped["seconds"]
            case["ratio"] = ratio(seconds, in_memory["seconds"]) if seconds else None
            cases[name] = case
    ratios = [case["ratio"] for case in cases.values()]
    return None if None in ratios else max(ratios), {
        "cases": cases,
        "limit_bytes": settings.memory_limit_bytes if group else None,
        "limited_by": f"cgroup {group.parent}" if group else "no cgroup; pages dropped before each training",
        "lanes": settings.trials * settings.method_seeds,
    }


def train_on(settings: Settings, path: str, group: str | None, epochs: int, in_memory: bool) -> dict[str, Any]:
    """Train on the bank at `path`, in memory or memory-mapped within the cgroup `group`; runs in its own process."""
    if group is not None:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    runs = make_runs("los", replace(settings, seeds=settings.method_seeds), epochs)
    warm_up(settings.device)
    bank = open_bank(Path(path))
    if in_memory:
        bank = replace(bank, train_features=bank.train_features.clone())
    elif group is not None:
        _limit(Path(group), settings.memory_limit_bytes)
    seconds: list[float] = []
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    for _ in range(min(settings.repeats, 2)):
        if not in_memory:
            _drop_pages(Path(path))
        seconds.append(seconds_of(lambda: fit(fused, bank, runs, settings), settings.device))
    return {"seconds": seconds, "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults}


def _in_process(
    settings: Settings, path: Path, group: Path | None, epochs: int, *, timeout: float | None
) -> dict[str, Any]:
    """Train in a separate process: memory-mapped with a `timeout`, in memory without."""
    _drop_pages(path)  # pages in memory stay charged to the cgroup that read them first
    arguments = {"path": str(path), "group": group and str(group), "epochs": epochs, "in_memory": timeout is None}
    try:
        found: dict[str, Any] = run_piece("train_on", settings, timeout=timeout, **arguments)
    except PieceFailed as error:
        if timeout is not None and error.code is None:
            return {"seconds": [], "given_up_after": (timeout - STARTUP_SECONDS) / min(settings.repeats, 2)}
        return {"seconds": [], "ended_with": error.code}
    return found


def _write(settings: Settings, views: int, store: Path) -> Path:
    """Write a bank with `memory_bank_bytes` over all views."""
    shape = settings.shape
    images = settings.memory_bank_bytes // (4 * shape.dim * views)
    bank = generate(replace(shape, images=images, test_images=min(shape.test_images, images)))
    features = bank.train_features.expand(views, -1, -1)
    inputs = {"benchmark": views}
    return write_bank(store, inputs, replace(bank, fingerprint=bank_fingerprint(inputs), train_features=features))


def _drop_pages(path: Path) -> None:
    for file in path.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _memory_group(limit: int | None) -> Iterator[Path | None]:
    """A memory cgroup that a child process can join and limit, or None."""
    for root, controllers, limit_file, _ in CGROUPS:
        group = root / f"longtail-benchmark-{os.getpid()}"
        try:
            if limit is None or (controllers and "memory" not in (root / controllers).read_text().split()):
                continue
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit_file).exists():
                yield group
                return
        finally:
            group.rmdir()
    yield None


def _limit(group: Path, limit: int | None) -> None:
    for _, _, memory, swap in CGROUPS:
        for name in (memory, swap):
            with contextlib.suppress(OSError):
                if (group / name).exists():
                    (group / name).write_text("0" if name == "memory.swap.max" else str(limit))
    usage = [group / "memory.current", group / "memory.usage_in_bytes"]
    used = next(int(file.read_text()) for file in usage if file.exists())
    if limit is None or used > limit:
        raise RuntimeError(f"the process uses {used} bytes, more than the limit of {limit} bytes")


def _disk_directory() -> str | None:
    """A directory on disk; /tmp may be a file system in memory."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else None
