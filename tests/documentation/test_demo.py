"""`make demo` runs and prints the output that README.md shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation.pages import ROOT, blocks
from documentation.running import alike

pytestmark = pytest.mark.slow


def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """Runs in a separate directory with its own `runs`; uses the current environment instead of creating one."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "sweeps" / "specs", tmp_path / "sweeps" / "specs")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program = tmp_path / ".venv" / "bin" / "lt-sweep"
    program.write_text(f"#!{sys.executable}\nimport sys\n\nfrom sweeps.cli.app import main\n\nsys.exit(main())\n")
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        ["make", "--silent", "--old-file=.venv/.done", "demo"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    (page, *_) = [block.text for block in blocks((ROOT / "README.md").read_text()) if block.text.startswith("demo: ")]
    assert alike(done.stdout, page), f"run `make docs`: README.md has\n{page}\nthe demo printed\n{done.stdout}"
