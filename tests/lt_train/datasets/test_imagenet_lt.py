"""ImageNet-LT's list files, on a miniature tree."""

from pathlib import Path

import pytest
from support.images import write_images

from lt_train.core.errors import DataError, SpecError
from lt_train.datasets.base import DATASETS, ImageData, ResizedCrop
from lt_train.datasets.imagenet_lt import ImageNetLT

IMAGES = {
    "train": {f"train/n0144076{k % 3}/n0144076{k % 3}_{k}.JPEG": k % 3 for k in range(9)},
    "val": {f"train/n0144076{k}/n0144076{k}_1{k}.JPEG": k for k in range(3)},
    "test": {f"val/ILSVRC2012_val_0000000{k}.JPEG": k for k in range(3)},
}


def write(root: Path, labels: tuple[int, ...] = (0, 1, 2)) -> Path:
    for part, images in IMAGES.items():
        write_images(root, images)
        lines = [f"{path} {labels[label]}\n" for path, label in images.items()]
        (root / f"ImageNet_LT_{part}.txt").write_text("".join(lines))
    return root


def test_a_miniature_is_read_as_it_is_and_told_loudly(tmp_path: Path) -> None:
    data = DATASETS.parse({"kind": "imagenet_lt", "root": str(write(tmp_path)), "size": 8, "resize": 9}).load()
    assert isinstance(data, ImageData)
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (9, 3, 3, 3)
    assert data.train.labels.tolist() == list(IMAGES["train"].values())
    assert data.notes == (
        "THIS IS NOT THE PUBLISHED imagenet_lt: train 9 instead of 115846, val 3 instead of 20000, test 3 instead of "
        "50000, 3 classes instead of 1000; results compare with no published ones",
    )


def test_the_published_counts_are_taken_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageNetLT, "published", {"train": 9, "val": 3, "test": 3})
    monkeypatch.setattr(ImageNetLT, "classes", 3)
    data = DATASETS.parse({"kind": "imagenet_lt", "root": str(write(tmp_path)), "size": 8}).load()
    assert data.notes == ()


def test_images_are_cut_as_usual_and_the_square_must_fit() -> None:
    spec = DATASETS.parse({"kind": "imagenet_lt", "root": "x"})
    assert isinstance(spec, ImageNetLT)
    assert (spec.size, spec.resize) == (224, 256)
    with pytest.raises(SpecError, match=r"imagenet_lt\.resize: must be at least size \(288\), got 256"):
        DATASETS.parse({"kind": "imagenet_lt", "root": "x", "size": 288})


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "val/ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(DataError, match=r"used: 1 \(1 in test\): val/ILSVRC2012_val_00000001\.JPEG \(missing\)"):
        DATASETS.parse({"kind": "imagenet_lt", "root": str(tmp_path), "size": 8}).load()


def test_labels_that_were_renumbered_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, labels=(1, 0, 2))
    spec = DATASETS.parse({"kind": "imagenet_lt", "root": str(root), "size": 8})
    message = (
        r"labels must ascend with the class folders, a label for each, as published; heads .* would not fit: get the "
        r"published lists, or read these as image_list: 1 \(n01440761 has 0, after n01440760 with 1\)"
    )
    with pytest.raises(DataError, match=message):
        spec.load()
    found = spec.inspect(lambda *_: None)
    assert found.counts is not None
    assert found.counts.tolist() == [3, 3, 3]
    assert [finding.names for finding in found.findings] == [("n01440761 has 0, after n01440760 with 1",)]
    names = {part: f"ImageNet_LT_{part}.txt" for part in IMAGES}
    as_they_are = DATASETS.parse({"kind": "image_list", "root": str(root), "size": 8, **names}).load()
    assert isinstance(as_they_are, ImageData)
    assert as_they_are.train.labels[:3].tolist() == [1, 0, 2]


def test_a_folder_with_two_labels_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path) / "ImageNet_LT_val.txt"
    file.write_text(file.read_text().replace("n01440762_12.JPEG 2", "n01440762_12.JPEG 0"))
    with pytest.raises(DataError, match=r"a label for each.*: 1 \(n01440762 has 0, 2\)"):
        DATASETS.parse({"kind": "imagenet_lt", "root": str(tmp_path), "size": 8}).load()


def test_two_folders_of_one_label_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, labels=(0, 0, 1))
    with pytest.raises(DataError, match=r"a label for each.*: 1 \(n01440761 has 0, after n01440760 with 0\)"):
        DATASETS.parse({"kind": "imagenet_lt", "root": str(root), "size": 8}).load()


def test_parts_of_whole_images_are_the_augmentation_unless_told_otherwise() -> None:
    spec = DATASETS.parse({"kind": "imagenet_lt", "root": "x"})
    assert isinstance(spec, ImageNetLT)
    assert spec.augmentation == ResizedCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True)
    padded = DATASETS.parse({"kind": "imagenet_lt", "root": "x", "augmentation": {"pad": 16, "flip": True}})
    assert padded.identity()["augmentation"] == {"pad": 16, "flip": True}
