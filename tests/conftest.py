"""Shared fixtures: a sweep that runs in a second or two on generated features, a local Ray, a cluster, a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster import LocalCluster, local_cluster
from support.features import write_features

from lt_train.core.registry import REGISTRIES
from sweeps.config.spec import SweepSpec, load_resolved


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that no worker is left with one at the end; needs `--no-loadscope-reorder` with xdist."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `write_features`, written once per session."""
    return write_features(tmp_path_factory.mktemp("features") / "small.npz")


@pytest.fixture
def small_sweep(features_file: Path, tmp_path: Path) -> Callable[..., SweepSpec]:
    """`small_sweep(search={...}, selection={...}, ...)`: a sweep in its own storage; sections are merged."""

    def make(**sections: Any) -> SweepSpec:
        document: dict[str, Any] = {
            "version": 1,
            "name": "small",
            "dataset": {"kind": "arrays", "path": str(features_file)},
            "method": {"kind": "los"},
            "training": {"epochs": 3},
            "search": {
                "trials": 7,
                "proposal_batch": 2,
                "algorithm": {"kind": "tpe", "startup_trials": 2},
                "space": {
                    "method.smooth_factor": {"uniform": [0.1, 0.95]},
                    "method.lr": {"loguniform": [1e-3, 1e-1]},
                },
            },
            # Without extended training, which has its own tests, so that tests need not count its trial and runs.
            "selection": {"seeds": 2, "extended_training": None},
            "backend": {"kind": "inline"},
            "tracking": {"kind": "none"},
            "storage": str(tmp_path / "runs"),
        }
        for name, section in sections.items():
            mergeable = isinstance(section, dict) and isinstance(document.get(name), dict)
            document[name] = document[name] | section if mergeable else section
        return load_resolved(document)

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread, as in the other processes of a test: the number of threads can change the last bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """The address of a local Ray that is shared by tests; this process is connected to it."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster of three Ray nodes with PostgreSQL, an S3 store and MLflow, shared by tests."""
    place = tmp_path_factory.mktemp("cluster")
    for directory in (place, *place.parents[:2]):
        directory.chmod(0o711)  # the user of PostgreSQL needs access
    with local_cluster(place) as whole:
        yield whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("64k")` mounts a file system of that size; the test is skipped without root."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("mounting a file system requires root")
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"mounting a file system failed: {mounted.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def own_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers in any plugin group is undone. Groups that other tests made have no package any more."""
    for registry in [one for one in REGISTRIES.values() if one.package.startswith(("lt_train.", "sweeps."))]:
        monkeypatch.setattr(registry, "_kinds", dict(registry.kinds()))
        monkeypatch.setattr(registry, "_adapter", None)
