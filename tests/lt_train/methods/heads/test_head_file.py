"""A head file with an altered document is rejected with its path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lt_train.core.errors import CheckpointError
from lt_train.methods.heads.base import load_head


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 300_000])
def test_an_altered_document_is_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, path, metadata={"longtail-sweeps head": text})
    with pytest.raises(CheckpointError, match=f"head {path} cannot be read"):
        load_head(path)
