"""Sweeps with MLflow tracking, in SQLite stores of their own, and an environment without settings of W&B."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb

from sweeps.config.spec import SweepSpec

MakeSweep = Callable[..., SweepSpec]
WANDB_VARIABLES = (
    *("API_KEY", "BASE_URL", "MODE", "PROJECT", "ENTITY", "SWEEP_ID", "SILENT", "ERROR_REPORTING"),
    *("DATA_DIR", "CACHE_DIR", "SERVICE"),
)


@pytest.fixture
def tracked(small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeSweep:
    monkeypatch.chdir(tmp_path)  # to detect files that MLflow writes to the working directory
    return lambda **sections: small_sweep(**{"tracking": {"kind": "mlflow", "experiment": "tests"}, **sections})


@pytest.fixture
def image_classifier(tracked: MakeSweep) -> MakeSweep:
    sections = {
        "dataset": "digits_lt",
        "backbone": {"kind": "small_cnn", "width": 4},
        "stage1": {"kind": "ce", "epochs": 2},
        "search": {"trials": 2},
    }
    return lambda **others: tracked(**{**sections, **others})


@pytest.fixture
def wandb_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A home and a working directory of their own, and no settings of W&B."""
    for name in WANDB_VARIABLES:
        monkeypatch.setenv(f"WANDB_{name}", "")  # so that the end of the test removes what the sweep sets
        monkeypatch.delenv(f"WANDB_{name}")
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    wandb.teardown()
