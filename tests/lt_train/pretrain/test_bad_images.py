"""An image that cannot be decoded is an error that names it, before training starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.images import write_tree

from lt_train.backbones.base import BACKBONES
from lt_train.core.errors import DataError
from lt_train.datasets._images.files import ImageFiles, Images
from lt_train.datasets.base import DATASETS, ImageData, Labelled
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "birds", {part: {"jay": 6, "owl": 6} for part in ("train", "val", "test")})


@pytest.fixture
def birds(root: Path) -> ImageData:
    """Small images in files."""
    data = DATASETS.parse({"kind": "image_folder", "root": str(root), "size": 16, "in_memory": 0}).load()
    assert isinstance(data, ImageData)
    return data


def damage(root: Path, part: Labelled[Images]) -> str:
    """Overwrite the first image of the part; returns its name."""
    assert isinstance(part.inputs, ImageFiles)
    name = part.inputs.names[0]
    (root / name).write_bytes(b"<html>")
    return name


def in_memory(part: Labelled[Images]) -> Labelled[Images]:
    assert isinstance(part.inputs, ImageFiles)
    return Labelled(part.inputs.hold(), part.labels)


def train(data: ImageData, out: Path, **fields: Any) -> Path:
    recipe = RECIPES.parse({"kind": "ce", "epochs": 1, "batch_size": 4} | fields)
    return train_backbone(data, BACKBONES.parse({"kind": "small_cnn", "width": 4}), recipe, out)


def test_a_damaged_training_image_is_named(root: Path, birds: ImageData, tmp_path: Path) -> None:
    name = damage(root, birds.train)
    with pytest.raises(DataError, match=name):
        train(birds, tmp_path / "out")


def test_val_is_checked_before_training_if_it_is_used(root: Path, birds: ImageData, tmp_path: Path) -> None:
    assert birds.val is not None
    name = damage(root, birds.val)
    data = dataclasses.replace(birds, val=in_memory(birds.val))
    saved: list[Path] = []
    recipe = RECIPES.parse({"kind": "ce", "epochs": 2, "batch_size": 4, "val_every": 2})
    job = data, BACKBONES.parse({"kind": "small_cnn", "width": 4}), recipe, tmp_path / "out"
    with pytest.raises(DataError, match=name):
        train_backbone(*job, saved=saved.append)
    assert not saved, "training must not start"
    assert train(data, tmp_path / "out").exists()
