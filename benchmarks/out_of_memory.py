"""Part (d), last: a bank larger than the memory the process may use, against the same bank in memory.

The bank lies on disk as every bank does and is opened memory-mapped. Its process is put into a memory cgroup of its
own, which counts the pages of the files it reads and takes them away at the limit; where no such group can be made, the
file's pages are only dropped from memory before each training, and the JSON says so. Two banks of the same size: `one
view`, all of which is read in the one epoch that is trained, and `views`, with a view for each of 20 epochs, as
augmentation has it. Two stacks of lanes read at once, each in an order of its own. The worse ratio counts; each is the
median of two, the first of which looks at every value once, as a cold start does.
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
from piece import NotMeasured, measured
from settings import PAPER_EPOCHS, Settings

from lt_train.features.files import bank_fingerprint, open_bank, write_bank
from lt_train.retrain import fused

__all__ = ["out_of_memory", "train_on"]

GIVEN_UP, STARTING = 4, 30
"""Training from the mapped bank is given up at so many times the seconds in memory, and these to start and open it."""

CGROUPS = (
    # root of the hierarchy, the file that must name the controller, the limit, the limit of swap
    (Path("/sys/fs/cgroup"), "cgroup.subtree_control", "memory.max", "memory.swap.max"),
    (Path("/sys/fs/cgroup/memory"), None, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
)


def out_of_memory(settings: Settings) -> tuple[float | None, dict[str, Any]]:
    """The ratio (None where training was killed at the limit) and its times."""
    if torch.device(settings.device).type != "cpu":
        return None, {"not_measured": "banks are moved to the device whole"}
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=_disk()) as place, _memory_group(settings.memory_limit_bytes) as group:
        for name, views in (("one view", 1), ("views", PAPER_EPOCHS)):
            path = _write(settings, views, Path(place))
            held = _in_process(settings, path, None, views, timeout=None)
            if not held["seconds"]:
                raise NotMeasured("train_on", held["ended_with"])
            mapped = _in_process(settings, path, group, views, timeout=GIVEN_UP * sum(held["seconds"]) + STARTING)
            case = {"views": views, "epochs": views, "in_memory": held, "mapped": mapped}
            case["bank_bytes"] = sum(file.stat().st_size for file in path.iterdir())
            case["at_least"] = "given_up_after" in mapped
            seconds = [mapped["given_up_after"]] * len(held["seconds"]) if case["at_least"] else mapped["seconds"]
            case["ratio"] = ratio(seconds, held["seconds"]) if seconds else None
            cases[name] = case
    ratios = [case["ratio"] for case in cases.values()]
    return None if None in ratios else max(ratios), {
        "cases": cases,
        "limit_bytes": settings.memory_limit_bytes if group else None,
        "limited_by": f"cgroup {group.parent}" if group else "nothing; pages dropped before each training",
        "lanes": settings.trials * settings.method_seeds,
    }


def train_on(settings: Settings, path: str, group: str | None, epochs: int, held: bool) -> dict[str, Any]:
    """In a process of its own: train on the bank at `path`, `held` in memory or mapped within the cgroup `group`."""
    if group is not None:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    runs = make_runs("los", replace(settings, seeds=settings.method_seeds), epochs)
    warm_up(settings.device)
    bank = open_bank(Path(path))
    if held:
        bank = replace(bank, train_features=bank.train_features.clone())
    elif group is not None:
        _limit(Path(group), settings.memory_limit_bytes)
    seconds: list[float] = []
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    for _ in range(min(settings.repeats, 2)):
        if not held:
            _drop_pages(Path(path))
        seconds.append(seconds_of(lambda: fit(fused, bank, runs, settings), settings.device))
    return {"seconds": seconds, "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults}


def _in_process(
    settings: Settings, path: Path, group: Path | None, epochs: int, *, timeout: float | None
) -> dict[str, Any]:
    """In memory without a `timeout`, else mapped."""
    _drop_pages(path)  # or they would stay on the account of whoever read them first
    arguments = {"path": str(path), "group": group and str(group), "epochs": epochs, "held": timeout is None}
    try:
        found: dict[str, Any] = measured("train_on", settings, timeout=timeout, **arguments)
    except NotMeasured as error:
        if timeout is not None and error.code is None:
            return {"seconds": [], "given_up_after": (timeout - STARTING) / min(settings.repeats, 2)}
        return {"seconds": [], "ended_with": error.code}
    return found


def _write(settings: Settings, views: int, store: Path) -> Path:
    """A bank of `memory_bank_bytes` in all its views."""
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
    """A memory cgroup that a process of ours may join and limit, or None."""
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
        raise RuntimeError(f"the process holds {used} bytes and cannot be limited to {limit}")


def _disk() -> str | None:
    """Not /tmp, which may be memory itself."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else None
