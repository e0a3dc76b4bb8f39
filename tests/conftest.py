"""A sweep small enough for tests: generated features of six long-tailed classes, searched in a second or two."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.features import write_features
from support.world import World, a_world

from sweeps.config.spec import SweepSpec, load_resolved


@pytest.fixture(scope="session")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `write_features` writes, once."""
    return write_features(tmp_path_factory.mktemp("features") / "small.npz")


@pytest.fixture
def small_sweep(features_file: Path, tmp_path: Path) -> Callable[..., SweepSpec]:
    """`small_sweep(search={...}, selection={...}, ...)`: a spec in its own storage; sections are merged one deep."""

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
            # Not longer: what counts runs and trials of the other phases need not count one more; see test_extended_training.py.
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
    """One thread of torch, as other processes of the test have: with others a last bit may differ."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """The address of one local Ray for all tests that only need some Ray; this process has joined it."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A cluster of three Ray nodes with PostgreSQL, an S3 store and MLflow, for all tests that need the whole of it."""
    place = tmp_path_factory.mktemp("world")
    for directory in (place, *place.parents[:2]):
        directory.chmod(0o711)  # PostgreSQL's own user passes through
    with a_world(place) as whole:
        yield whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("64k")` mounts a real file system of that size; without root the test is skipped."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("only root may mount the small file system of this test")
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)
