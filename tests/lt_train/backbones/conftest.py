"""Fixtures of the tests of imported models."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.imported import write_arrays

from lt_train.core.plugins import ALLOWED_VARIABLE
from lt_train.datasets.base import DatasetSpec


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    """Models created by a test have reproducible weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetSpec:
    """Images of 3 x 32 x 32."""
    return write_arrays(tmp_path / "images.npz")


@pytest.fixture
def small(tmp_path: Path) -> DatasetSpec:
    """Images of 3 x 8 x 8."""
    return write_arrays(tmp_path / "small.npz", size=8)


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> str:
    """Allow the package with `external_models`; returns its name."""
    monkeypatch.setenv(ALLOWED_VARIABLE, "support")
    return "support"
