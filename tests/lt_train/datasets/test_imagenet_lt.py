"""ImageNet-LT's list files, on a miniature tree."""

from pathlib import Path

import pytest
from support.pictures import write_pictures

from lt_train.datasets.base import PictureData, parse_dataset
from lt_train.datasets.imagenet_lt import ImageNetLT
from lt_train.errors import DataError, SpecError

PICTURES = {
    "train": {f"train/n0144076{k % 3}/n0144076{k % 3}_{k}.JPEG": k % 3 for k in range(9)},
    "val": {f"train/n0144076{k}/n0144076{k}_1{k}.JPEG": k for k in range(3)},
    "test": {f"val/ILSVRC2012_val_0000000{k}.JPEG": k for k in range(3)},
}


def write(root: Path) -> Path:
    for part, pictures in PICTURES.items():
        write_pictures(root, pictures)
        lines = [f"{path} {label}\n" for path, label in pictures.items()]
        (root / f"ImageNet_LT_{part}.txt").write_text("".join(lines))
    return root


def test_a_miniature_is_read_as_it_is_and_told_loudly(tmp_path: Path) -> None:
    data = parse_dataset({"kind": "imagenet_lt", "root": str(write(tmp_path)), "size": 8, "resize": 9}).load()
    assert isinstance(data, PictureData)
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (9, 3, 3, 3)
    assert data.train.labels.tolist() == list(PICTURES["train"].values())
    assert data.notes == (
        "THIS IS NOT THE PUBLISHED imagenet_lt: train 9 instead of 115846, val 3 instead of 20000, test 3 instead of "
        "50000, 3 classes instead of 1000; results compare with no published ones",
    )


def test_the_published_counts_are_taken_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageNetLT, "published", {"train": 9, "val": 3, "test": 3})
    monkeypatch.setattr(ImageNetLT, "classes", 3)
    data = parse_dataset({"kind": "imagenet_lt", "root": str(write(tmp_path)), "size": 8}).load()
    assert data.notes == ()


def test_pictures_are_cut_as_usual_and_the_square_must_fit() -> None:
    spec = parse_dataset({"kind": "imagenet_lt", "root": "x"})
    assert isinstance(spec, ImageNetLT)
    assert (spec.size, spec.resize) == (224, 256)
    with pytest.raises(SpecError, match=r"imagenet_lt\.resize: must be at least size \(288\), got 256"):
        parse_dataset({"kind": "imagenet_lt", "root": "x", "size": 288})


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "val/ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(DataError, match=r"used: 1 \(1 in test\): val/ILSVRC2012_val_00000001\.JPEG \(missing\)"):
        parse_dataset({"kind": "imagenet_lt", "root": str(tmp_path), "size": 8}).load()
