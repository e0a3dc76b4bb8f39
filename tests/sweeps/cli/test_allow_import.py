"""Kinds of other packages: there where the person who runs a sweep says so, and never because a sweep file does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sweeps.config.spec import SweepSpec

ROOT = Path(__file__).parents[3]

SOURCE = '''
"""A method of one's own."""
from pathlib import Path
from typing import Literal
from lt_train.methods.base import TrainedMethod
from lt_train.losses.cross_entropy import CrossEntropy

Path(__file__).with_name("was-imported").touch()

class Mine(TrainedMethod):
    """Cross entropy, by another name."""
    kind: Literal["mine"] = "mine"

    def loss(self, lanes, class_counts):
        """Cross entropy."""
        return CrossEntropy()
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that lies where the command is typed."""
    room = tmp_path / "here" / "my_package" / "methods"
    room.mkdir(parents=True)
    (room.parent / "__init__.py").touch()
    (room / "__init__.py").touch()
    (room / "mine.py").write_text(SOURCE)
    return tmp_path / "here"


def lt_sweep(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("LT_ALLOW_IMPORT", None)
    command = [sys.executable, "-m", "sweeps.cli.main", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_a_sweep_file_alone_has_no_code_imported(package: Path, small_sweep: Callable[..., SweepSpec]) -> None:
    document = {**small_sweep().resolved(), "method": {"kind": "mine"}}
    document["search"]["space"] = {"method.lr": {"loguniform": [1e-3, 1e-1]}}
    file = package / "sweep.yaml"
    marker = package / "my_package" / "methods" / "was-imported"
    for kind in ("mine", "my_package.methods.mine", "my_package.methods.mine:Mine"):
        file.write_text(yaml.safe_dump({**document, "method": {"kind": kind}}, sort_keys=False))
        refused = lt_sweep(package, "run", str(file))
        assert refused.returncode == 2
        assert f"unknown kind {kind!r}" in refused.stderr or repr(kind) in refused.stderr
        assert not marker.exists()
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    done = lt_sweep(package, "run", str(file), "--allow-import", "my_package")
    assert done.returncode == 0, done.stderr
    assert marker.exists()
    assert "mine" in done.stdout


def test_a_file_beside_a_package_stands_in_for_no_library(package: Path) -> None:
    (package / "rich.py").write_text("raise SystemExit('imported')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-P",
        "-m",
        "sweeps.cli.main",
        "kinds",
        "--allow-import",
        "my_package",
    ]  # -P: as `lt-sweep`
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_package", "--allow-import no_such_package: there is no such package on this machine's path"),
        ("../my_package", "--allow-import takes the name of a package, got '../my_package'"),
        ("my_package; rm", "--allow-import takes the name of a package, got 'my_package; rm'"),
    ],
)
def test_what_is_no_package_is_refused(name: str, problem: str, package: Path) -> None:
    refused = lt_sweep(package, "kinds", "--allow-import", name)
    assert refused.returncode == 2
    assert problem in refused.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_package", "--allow-import no_such_package: there is no such package on this machine's path"),
        ("one_module", "--allow-import one_module: it is a module and no package"),
    ],
)
def test_what_cannot_be_shipped_is_refused_before_the_cluster_is_asked(name: str, problem: str, package: Path) -> None:
    (package / "one_module.py").touch()
    nobody = ("--address", "http://127.0.0.1:1")
    refused = lt_sweep(package, "resume", "mine", *nobody, "--ship-code", "--allow-import", name)
    assert refused.returncode == 2
    assert problem in refused.stderr
