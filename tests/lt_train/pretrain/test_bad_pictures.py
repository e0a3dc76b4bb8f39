"""A picture that cannot be decoded is named before anything is trained, and not blamed on the backbone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.pictures import write_tree

from lt_train.backbones.base import BACKBONES
from lt_train.core.errors import DataError
from lt_train.datasets._images.files import PictureFiles, Pictures
from lt_train.datasets.base import DATASETS, Labelled, PictureData
from lt_train.pretrain.base import RECIPES
from lt_train.pretrain.train import train_backbone


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "birds", {part: {"jay": 6, "owl": 6} for part in ("train", "val", "test")})


@pytest.fixture
def birds(root: Path) -> PictureData:
    """Small pictures in files."""
    data = DATASETS.parse({"kind": "image_folder", "root": str(root), "size": 16, "in_memory": 0}).load()
    assert isinstance(data, PictureData)
    return data


def damage(root: Path, part: Labelled[Pictures]) -> str:
    """The name of the part's first picture, which is no picture any more."""
    assert isinstance(part.inputs, PictureFiles)
    name = part.inputs.names[0]
    (root / name).write_bytes(b"<html>")
    return name


def held(part: Labelled[Pictures]) -> Labelled[Pictures]:
    assert isinstance(part.inputs, PictureFiles)
    return Labelled(part.inputs.hold(), part.labels)


def train(data: PictureData, out: Path, **fields: Any) -> Path:
    recipe = RECIPES.parse({"kind": "ce", "epochs": 1, "batch_size": 4} | fields)
    return train_backbone(data, BACKBONES.parse({"kind": "small_cnn", "width": 4}), recipe, out)


def test_a_damaged_picture_is_not_the_backbones_fault(root: Path, birds: PictureData, tmp_path: Path) -> None:
    name = damage(root, birds.train)
    with pytest.raises(DataError, match=f"^picture {name} cannot be decoded"):
        train(birds, tmp_path / "out")


def test_val_is_looked_at_before_training_where_it_is_measured_on(
    root: Path, birds: PictureData, tmp_path: Path
) -> None:
    assert birds.val is not None
    name = damage(root, birds.val)
    data = dataclasses.replace(birds, val=held(birds.val))
    saved: list[Path] = []
    recipe = RECIPES.parse({"kind": "ce", "epochs": 2, "batch_size": 4, "val_every": 2})
    job = data, BACKBONES.parse({"kind": "small_cnn", "width": 4}), recipe, tmp_path / "out"
    with pytest.raises(DataError, match=f"^picture {name} cannot be decoded"):
        train_backbone(*job, saved=saved.append)
    assert not saved, "nothing is to be trained"
    assert train(data, tmp_path / "out").exists()
