"""Fixtures of the tests of models of others."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.imported import write_arrays

from lt_train.core.registry import ALLOWED_VARIABLE
from lt_train.datasets.base import DatasetSpec


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    """Models that a test makes start with the same weights every time."""
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
    """The package with `their_models`, which may be imported."""
    monkeypatch.setenv(ALLOWED_VARIABLE, "support")
    return "support"
