"""CIFAR-10 from pickles in the published layout."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lt_train.datasets.base import DATASETS, ImageData


def batch(key: str, num_classes: int, per_class: int, seed: int) -> dict[str, Any]:
    labels = np.tile(np.arange(num_classes), per_class)
    data = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return {"data": data, key: labels.tolist(), "filenames": ["x.png"] * len(labels), "batch_label": "a batch"}


def load(document: dict[str, Any]) -> ImageData:
    data = DATASETS.parse(document).load()
    assert isinstance(data, ImageData)
    return data


def test_cifar10_joins_its_five_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(pickle.dumps(batch("labels", 10, 4, seed), protocol=2))
    data = load({"kind": "cifar10_lt", "root": str(tmp_path), "n_max": 15, "imbalance_ratio": 5, "val_per_class": 0})
    assert data.class_counts().tolist()[0] == 15
    second = pickle.loads((folder / "data_batch_2").read_bytes(), encoding="latin1")["data"][0]
    assert torch.equal(data.train.inputs[4].flatten(), torch.from_numpy(second))  # class 0: four a batch
    assert data.val is None
