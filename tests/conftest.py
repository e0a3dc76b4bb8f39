"""A sweep small enough for tests: generated features of six long-tailed classes, searched in a second or two."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.world import World, a_world

from sweeps.spec import SweepSpec, load_resolved

CLASS_COUNTS = (130, 80, 40, 21, 12, 6)


@pytest.fixture(scope="session")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz as a user would bring it: two training views, a mirrored test view, a stage-1 head."""
    rng = np.random.default_rng(7)
    classes, dim = len(CLASS_COUNTS), 12
    centers = rng.normal(size=(classes, dim))

    def draw(counts: tuple[int, ...], views: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), counts)
        features = centers[labels][None] + 1.3 * rng.normal(size=(views, len(labels), dim))
        return features.astype(np.float32), labels

    train, test, val = draw(CLASS_COUNTS, 2), draw((50,) * classes, 2), draw((15,) * classes, 1)
    # A head that favours large classes, as stage 1 leaves it.
    weight = (0.5 * centers).astype(np.float32)
    bias = np.log(np.array(CLASS_COUNTS) / sum(CLASS_COUNTS)).astype(np.float32)
    path = tmp_path_factory.mktemp("features") / "small.npz"
    np.savez(
        path,
        train_features=train[0],
        train_labels=train[1],
        test_features=test[0],
        test_labels=test[1],
        val_features=val[0],
        val_labels=val[1],
        weight=weight,
        bias=bias,
    )
    return path


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
                "generation": 2,
                "sampler": {"kind": "tpe", "startup_trials": 2},
                "space": {
                    "method.smooth_factor": {"uniform": [0.1, 0.95]},
                    "method.lr": {"loguniform": [1e-3, 1e-1]},
                },
            },
            "selection": {"seeds": 2},
            "backend": {"kind": "inline"},
            "tracking": {"kind": "none"},
            "storage": str(tmp_path / "runs"),
        }
        for name, section in sections.items():
            mergeable = isinstance(section, dict) and isinstance(document.get(name), dict)
            document[name] = document[name] | section if mergeable else section
        return load_resolved(document)

    return make


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """The address of one local Ray for all tests that only need some Ray; this process has joined it."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
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
