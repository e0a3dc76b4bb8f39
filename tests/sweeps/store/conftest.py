"""The directory of a finished sweep, and a copy to be damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.written_ledgers import IDENTITY, finished

from sweeps.store.ledger import LedgerReader


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep with 3 packs of 2 runs. A run failed, with bytes that may become newlines."""
    return finished(tmp_path_factory.mktemp("original"), IDENTITY)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of another sweep with the same trials, packs and keys."""
    return finished(tmp_path_factory.mktemp("other"), IDENTITY | {"sweep_id": "def"})


@pytest.fixture(scope="module")
def true(original: Path) -> LedgerReader:
    """What is recorded there."""
    return LedgerReader(original)


@pytest.fixture
def copy(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be damaged. Nothing is synced, to save time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Path(shutil.copytree(original, tmp_path / "copy"))
