"""iNaturalist 2018's list files, on a miniature tree."""

from pathlib import Path

import pytest
from support.images import write_images

from lt_train.core.errors import DataError
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.datasets.inaturalist18 import INaturalist18

TRAIN = {f"train_val2018/Aves/{2500 + k % 4}/{k:032x}.jpg": k % 4 for k in range(16)}
VAL = {f"train_val2018/Aves/{2500 + k % 4}/v{k:031x}.jpg": k % 4 for k in range(12)}


def load(root: Path, **fields: float) -> ImageData:
    write_images(root, TRAIN | VAL)
    for name, images in (("train", TRAIN), ("val", VAL)):
        lines = [f"{path} {label}\n" for path, label in images.items()]
        (root / f"iNaturalist18_{name}.txt").write_text("".join(lines))
    data = DATASETS.parse({"kind": "inaturalist18", "root": str(root), "size": 8, **fields}).load()
    assert isinstance(data, ImageData)
    return data


def test_its_validation_images_are_the_test_set(tmp_path: Path) -> None:
    data = load(tmp_path)
    assert (len(data.train), data.val, len(data.test)) == (16, None, 12)
    assert data.test.inputs.names == list(VAL)
    assert data.notes == (
        "THIS IS NOT THE PUBLISHED inaturalist18: train 16 instead of 437513, test 12 instead of 24426, 4 classes "
        "instead of 8142; results compare with no published ones",
    )


def test_a_validation_set_is_held_out_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(INaturalist18, "published", {"train": 16, "test": 12})
    monkeypatch.setattr(INaturalist18, "classes", 4)
    data = load(tmp_path, val_fraction=0.25)
    assert data.val is not None
    assert (data.class_counts().tolist(), len(data.val)) == ([3, 3, 3, 3], 4)
    assert len(data.notes) == 1


def test_labels_that_do_not_ascend_with_the_folders_are_refused(tmp_path: Path) -> None:
    load(tmp_path)
    for name in ("train", "val"):
        file = tmp_path / f"iNaturalist18_{name}.txt"
        pairs = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(f"{path} {3 - int(label)}\n" for path, label in pairs))
    with pytest.raises(
        DataError, match=r"must ascend with the class folders.*: 3 \(2501 has 2, after 2500 with 3, 2502 has 1, after"
    ):
        DATASETS.parse({"kind": "inaturalist18", "root": str(tmp_path), "size": 8}).load()


def test_folders_are_numbers_and_not_words(tmp_path: Path) -> None:
    for part in ("train", "val"):
        images = {f"train_val2018/Aves/{folder}/{part}.jpg": label for label, folder in enumerate((9, 10, 100))}
        write_images(tmp_path, images)
        lines = [f"{path} {label}\n" for path, label in images.items()]
        (tmp_path / f"iNaturalist18_{part}.txt").write_text("".join(lines))
    data = DATASETS.parse({"kind": "inaturalist18", "root": str(tmp_path), "size": 8}).load()
    assert isinstance(data, ImageData)
    assert data.num_classes == 3
