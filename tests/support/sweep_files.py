"""A valid sweep file, and the problems of invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from lt_train.core.errors import SpecError
from sweeps.config.spec import SweepSpec, load_sweep

__all__ = ["GOOD", "load", "problems"]

GOOD = """\
version: 1
name: good
dataset: {kind: digits_lt}
backbone: {kind: small_cnn}
stage1: {kind: ce}
method: {kind: los}
search:
  trials: 4
  space:
    method.lr: {loguniform: [1e-4, 1e-1]}
    method.smooth_factor: {uniform: [0.2, 0.98]}
"""


def load(tmp_path: Path, text: str) -> SweepSpec:
    """Load the sweep of a file with this text."""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_sweep(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    """The problems of a file with this text, without its directory."""
    with pytest.raises(SpecError, match=r"s\.yaml:\d+: ") as caught:
        load(tmp_path, text)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]
