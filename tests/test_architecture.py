"""The import contracts hold, and a forbidden import is reported with its contract and modules."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages of `tree`; the current directory is first on its path."""
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([command, "--no-cache"], cwd=tree, capture_output=True, text=True, check=False)


def broken(output: str) -> list[str]:
    """Names of the broken contracts in the output of import-linter."""
    return re.findall(r"^(.*) BROKEN", output, flags=re.MULTILINE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in ("lt_train", "sweeps"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_all_contracts_are_kept() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "statement", "contract", "violation"),
    [
        ("lt_train/metrics/logits.py", "import ray", "training knows no search", "lt_train.metrics.logits -> ray"),
        ("lt_train/cli/app.py", "import optuna", "training knows no search", "lt_train.cli.app -> optuna"),
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
            "sweeps/reporting/terminal.py",
            "import wandb",
            "Weights & Biases is imported in tracking only",
            "sweeps.reporting.terminal -> wandb",
        ),
        (
            "sweeps/experiment/runner.py",
            "import sweeps.reporting.terminal",
            "the runner emits events and shows nothing itself",
            "sweeps.experiment.runner -> sweeps.reporting.terminal",
        ),
        (
            "sweeps/analysis/selection.py",
            "import optuna",
            "Optuna is imported in search only",
            "sweeps.analysis.selection -> optuna",
        ),
        (
            "lt_train/losses.py",
            "import lt_train.retrain.fused",
            "lt_train: folders from top to bottom",
            "lt_train.losses -> lt_train.retrain.fused",
        ),
        (
            "sweeps/config/rules.py",
            "import sweeps.experiment.trial_queue",
            "sweeps: folders from top to bottom",
            "sweeps.config.rules -> sweeps.experiment.trial_queue",
        ),
    ],
)
def test_a_forbidden_import_is_reported_by_name(
    tree: Path, file: str, statement: str, contract: str, violation: str
) -> None:
    path = tree / file
    path.write_text(f"{path.read_text()}\n{statement}\n")
    result = lint(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert contract in broken(result.stdout)
    assert violation in result.stdout


def test_a_lazy_import_counts_as_an_import(tree: Path) -> None:
    path = tree / "sweeps/experiment/runner.py"
    path.write_text(f"{path.read_text()}\ndef later():\n    import mlflow\n")
    assert broken(lint(tree).stdout) == ["MLflow is imported in tracking only"]


def test_every_module_is_in_a_layer() -> None:
    """No contract applies to a folder that is not in a layer."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer for contract in contracts for layer in contract.get("layers", [])]
    placed = [name.strip() for layer in layers for name in layer.split("|")]
    existing: list[str] = []
    for package in ("lt_train", "sweeps"):
        for name in _modules(ROOT / package, package):
            # A layer contains either the whole folder or each of its modules.
            is_unit = name in placed or not (ROOT / name.replace(".", "/")).is_dir()
            existing += [name] if is_unit else _modules(ROOT / name.replace(".", "/"), name)
    assert sorted(placed) == sorted(existing)


def _modules(directory: Path, package: str) -> list[str]:
    return [
        f"{package}.{path.stem}"
        for path in directory.iterdir()
        if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())
    ]
