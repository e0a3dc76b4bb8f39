"""Components of other packages: imported if the command line allows it, never because a sweep file names them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sweeps.config.spec import SweepSpec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

SOURCE = '''
"""A custom method."""
from pathlib import Path
from typing import Literal
from lt_train.methods.base import METHODS, TrainedMethod
from lt_train.losses import CrossEntropy

Path(__file__).with_name("was-imported").touch()

@METHODS.register
class Mine(TrainedMethod):
    """Cross entropy under another name."""
    kind: Literal["mine"] = "mine"

    def loss(self, lanes, class_counts):
        """Cross entropy."""
        return CrossEntropy()
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in the current directory of the command."""
    methods = tmp_path / "here" / "my_package" / "methods"
    methods.mkdir(parents=True)
    (methods.parent / "__init__.py").write_text("import my_package.methods.mine")
    (methods / "__init__.py").touch()
    (methods / "mine.py").write_text(SOURCE)
    (tmp_path / "here" / "one_module.py").write_text(SOURCE.replace("was-imported", "one-was-imported"))
    return tmp_path / "here"


def lt_sweep(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("LT_ALLOW_IMPORT", None)
    command = [sys.executable, "-m", "sweeps", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_a_sweep_file_alone_imports_no_code(package: Path, small_sweep: Callable[..., SweepSpec]) -> None:
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


def test_a_single_module_is_enough_and_its_code_is_part_of_the_sweep(
    package: Path, small_sweep: Callable[..., SweepSpec]
) -> None:
    file = package / "sweep.yaml"
    document = {**small_sweep().resolved(), "method": {"kind": "mine"}}
    document["search"]["space"] = {"method.lr": {"loguniform": [1e-3, 1e-1]}}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    done = lt_sweep(package, "run", str(file), "--allow-import", "one_module")
    assert done.returncode == 0, done.stderr
    directory = Path(document["storage"]) / document["name"]
    unknown = lt_sweep(package, "report", str(directory))
    assert unknown.returncode == 2
    assert "uses kinds of one_module, which are not imported; give --allow-import one_module" in unknown.stderr
    assert lt_sweep(package, "report", str(directory), "--allow-import", "one_module").returncode == 0
    module = package / "one_module.py"
    module.write_text(module.read_text().replace('"""Cross entropy."""', '"""Plain cross entropy."""  # a comment'))
    again = lt_sweep(package, "run", str(file), "--allow-import", "one_module")
    assert again.returncode == 0, again.stderr
    module.write_text(module.read_text().replace("CrossEntropy()", "CrossEntropy(smooth_factor=0.5)"))
    changed = lt_sweep(package, "run", str(file), "--allow-import", "one_module")
    assert changed.returncode == 2
    assert "was trained with other code: that of one_module:Mine has changed since" in changed.stderr


def test_a_broken_module_stops_nothing_that_does_not_need_it(package: Path) -> None:
    (package / "broken.py").write_text("import no_such_library")
    (package / "datasets.py").write_text("raise RuntimeError('this file has nothing to do with sweeps')")
    done = lt_sweep(package, "kinds", "--allow-import", "broken", "--allow-import", "one_module")
    assert done.returncode == 0, done.stderr
    assert (
        "warning: broken could not be imported, and not all of its kinds are available: ModuleNotFoundError"
        in done.stderr
    )
    assert "mine" in done.stdout


def test_a_file_in_the_current_directory_shadows_no_library(package: Path) -> None:
    (package / "rich.py").write_text("raise SystemExit('imported')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # -P: Python does not put the current directory on its path, as for `lt-sweep`.
    command = [sys.executable, "-P", "-m", "sweeps", "kinds", "--allow-import", "my_package"]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_package", "--allow-import no_such_package: there is no such module on the Python path"),
        ("../my_package", "--allow-import must be the name of a module or package, got '../my_package'"),
        ("my_package; rm", "--allow-import must be the name of a module or package, got 'my_package; rm'"),
    ],
)
def test_a_name_that_is_not_a_package_is_refused(name: str, problem: str, package: Path) -> None:
    refused = lt_sweep(package, "kinds", "--allow-import", name)
    assert refused.returncode == 2
    assert problem in refused.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_package", "--allow-import no_such_package: there is no such module on the Python path"),
        ("one-module", "--allow-import must be the name of a module or package, got 'one-module'"),
    ],
)
def test_code_that_cannot_be_shipped_is_refused_before_the_cluster_is_contacted(
    name: str, problem: str, package: Path
) -> None:
    address = ("--address", "http://127.0.0.1:1")
    refused = lt_sweep(package, "resume", "mine", *address, "--ship-code", "--allow-import", name)
    assert refused.returncode == 2
    assert problem in refused.stderr
