"""Runs the commands of docs/cluster.md, section "One machine"."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.cluster import ROOT

LEFT_OUT = shutil.ignore_patterns("__pycache__", "secrets")


def test_the_commands_of_the_documentation_run(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o711)  # PostgreSQL's user must be able to enter it
    place = tmp_path / "clone"
    for name in ("infra", "lt_train", "sweeps"):
        shutil.copytree(ROOT / name, place / name, ignore=LEFT_OUT)
    section = (ROOT / "docs" / "cluster.md").read_text().partition("## One machine")[2].partition("\n## ")[0]
    (typed,) = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    small = typed.replace("--workers 2 --cpus 4", "--workers 1 --cpus 1")  # the documented variant for small machines
    assert small != typed
    *lines, down = small.splitlines()
    assert down.endswith(" down")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(place),
    }
    try:
        done = _bash("\n".join(lines), place, environment)
    finally:
        ended = _bash(down, place, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo: test accuracy in %" in done.stdout
    assert ended.returncode == 0, ended.stdout + ended.stderr


def _bash(text: str, place: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-e", "-c", text], cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=540
    )
