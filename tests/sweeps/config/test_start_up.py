"""Sweep files are read, and the commands about them run, without importing libraries that take seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest

SPECS = Path(__file__).parents[3] / "sweeps" / "specs"
DEMO = SPECS / "demo.yaml"
HEAVY = {"torch", "torchvision", "ray", "mlflow", "wandb", "optuna", "matplotlib", "scipy", "sklearn"}


def imported(code: str) -> set[str]:
    """The libraries of `HEAVY` that a new process has imported when it has run `code`."""
    report = f"import sys; print(*sorted(set({sorted(HEAVY)}) & set(sys.modules)), file=sys.stderr)"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    *_, names = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    return {*names.split()}


def test_a_sweep_file_is_loaded_without_heavy_libraries() -> None:
    assert imported(f"from sweeps.config.spec import load_sweep\nload_sweep({str(DEMO)!r})") == set()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["kinds"], ["schema"], ["validate", *map(str, sorted(SPECS.glob("*.yaml")))]],
    ids=lambda arguments: arguments[0],
)
def test_commands_about_files_start_without_heavy_libraries(arguments: list[str]) -> None:
    assert imported(f"from sweeps.cli.app import main\nassert main({arguments}) == 0") == set()


def test_plan_refuses_an_invalid_file_before_it_imports_heavy_libraries(tmp_path: Path) -> None:
    invalid = tmp_path / "invalid.yaml"
    invalid.write_text("name: invalid\ndataset: {kind: unknown}\n")
    found = imported(
        f"import sys\nfrom sweeps.cli.app import main\nstatus = main(['plan', {str(invalid)!r}])\nassert status == 2"
    )
    assert not found & HEAVY
