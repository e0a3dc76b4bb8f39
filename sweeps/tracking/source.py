"""Which code a run is of: the version of this package, and its commit where it lies in a clone of its repository."""

from __future__ import annotations

import functools
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["code_tags"]

PACKAGE = "longtail-sweeps"


@functools.cache
def code_tags() -> dict[str, str]:
    """Tags as MLflow names them: `mlflow.source.name`, and `mlflow.source.git.commit` where there is one."""
    try:
        called = f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:  # run from its sources
        called = PACKAGE
    tags = {"mlflow.source.name": called, "mlflow.source.type": "LOCAL"}
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
        try:
            said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return tags
        if said.returncode == 0:
            tags["mlflow.source.git.commit"] = said.stdout.strip()
    return tags
