"""The arrows between rooms are kept, and an arrow planted against them is caught by name."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the packages of `tree`: the current directory comes first on its path."""
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([command, "--no-cache"], cwd=tree, capture_output=True, text=True, check=False)


def broken(output: str) -> list[str]:
    """Names of the broken contracts."""
    return re.findall(r"^(.*) BROKEN", output, flags=re.MULTILINE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in ("lt_train", "sweeps"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_tree_keeps_its_contracts() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "statement", "contract", "arrow"),
    [
        ("lt_train/metrics/accuracy.py", "import ray", "training knows no search", "lt_train.metrics.accuracy -> ray"),
        ("lt_train/cli/main.py", "import optuna", "training knows no search", "lt_train.cli.main -> optuna"),
        (
            "lt_train/core/seeding.py",
            "import sweeps.experiment.packing",
            "training knows no search",
            "lt_train.core.seeding -> sweeps",
        ),
        (
            "sweeps/experiment/runner.py",
            "import ray.tune",
            "Ray is imported in backends and cluster only",
            "sweeps.experiment.runner -> ray",
        ),
        (
            "sweeps/experiment/runner.py",
            "import mlflow",
            "MLflow is imported in tracking only",
            "sweeps.experiment.runner -> mlflow",
        ),
        (
            "sweeps/analysis/selection.py",
            "import optuna",
            "Optuna is imported in search only",
            "sweeps.analysis.selection -> optuna",
        ),
        (
            "lt_train/losses/cross_entropy.py",
            "import lt_train.retrain.fused",
            "lt_train: folders from top to bottom",
            "lt_train.losses.cross_entropy -> lt_train.retrain.fused",
        ),
        (
            "sweeps/config/rules.py",
            "import sweeps.experiment.trial_queue",
            "sweeps: folders from top to bottom",
            "sweeps.config.rules -> sweeps.experiment.trial_queue",
        ),
    ],
)
def test_a_planted_arrow_is_caught_by_name(tree: Path, file: str, statement: str, contract: str, arrow: str) -> None:
    path = tree / file
    path.write_text(f"{path.read_text()}\n{statement}\n")
    result = lint(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert contract in broken(result.stdout)
    assert arrow in result.stdout


def test_a_lazy_import_is_an_arrow_too(tree: Path) -> None:
    path = tree / "sweeps/experiment/runner.py"
    path.write_text(f"{path.read_text()}\ndef later():\n    import mlflow\n")
    assert broken(lint(tree).stdout) == ["MLflow is imported in tracking only"]


def test_every_module_of_both_packages_has_a_place_in_the_layers() -> None:
    """A room that no contract names is a room without rules."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer for contract in contracts for layer in contract.get("layers", [])]
    placed = [room.strip() for layer in layers for room in layer.split("|")]
    there: list[str] = []
    for package in ("lt_train", "sweeps"):
        for name in _modules(ROOT / package, package):
            # A room has a place as a whole, or each of its files has one.
            whole = name in placed or not (ROOT / name.replace(".", "/")).is_dir()
            there += [name] if whole else _modules(ROOT / name.replace(".", "/"), name)
    assert sorted(placed) == sorted(there)


def _modules(directory: Path, package: str) -> list[str]:
    return [
        f"{package}.{path.stem}"
        for path in directory.iterdir()
        if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())
    ]
