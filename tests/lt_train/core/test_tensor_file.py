"""Tensors come back from a file as they were, whatever memory they had."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from lt_train.core.tensor_file import write_tensors


def test_one_module_under_two_names_is_written_under_both(tmp_path: Path) -> None:
    network = nn.ModuleDict({"stem": nn.Linear(3, 2)})
    network["again"] = network["stem"]
    write_tensors(tmp_path / "file", network.state_dict())
    found = load_file(tmp_path / "file")
    assert set(found) == {"stem.weight", "stem.bias", "again.weight", "again.bias"}
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


def test_parts_of_one_tensor_are_written_as_what_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    parts = {"whole": whole, "row": whole[1], "turned": whole.T, "empty": whole[:0], "nothing": torch.empty(0)}
    write_tensors(tmp_path / "file", parts)
    found = load_file(tmp_path / "file")
    assert set(found) == set(parts)
    assert all(torch.equal(found[name], tensor) for name, tensor in parts.items())
