"""Sweeps with MLflow tracking, in SQLite stores of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.config.spec import SweepSpec

MakeSweep = Callable[..., SweepSpec]


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
