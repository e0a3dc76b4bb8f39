"""List files: the format, the labels, missing images, and the three published benchmarks on miniature trees."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.images import write_images

from lt_train.core.errors import DataError, SpecError
from lt_train.datasets._images.files import ImageFiles
from lt_train.datasets.base import DATASETS, ImageData, ResizedCrop
from lt_train.datasets.image_lists import ImageNetLT, INaturalist18, PlacesLT

TRAIN = {f"pics/t {k}.jpg": k % 3 for k in range(12)}
TEST = {f"pics/e{k}.jpg": k % 3 for k in range(6)}


def write_lists(root: Path, prefix: str = "", **lists: Mapping[str, int]) -> Path:
    for name, images in lists.items():
        (root / f"{prefix}{name}.txt").write_text("".join(f"{path} {label}\n" for path, label in images.items()))
    return root


def load(root: Path, kind: str = "image_list", **fields: Any) -> ImageData:
    data = DATASETS.parse({"kind": kind, "root": str(root), "size": 8, **fields}).load()
    assert isinstance(data, ImageData)
    return data


def test_lists_give_images_and_labels_in_their_order(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST)
    data = load(write_lists(tmp_path, train=TRAIN, val=TEST, test=TEST), val="val.txt")
    assert isinstance(data.train.inputs, ImageFiles)
    assert data.train.inputs.names == list(TRAIN)
    assert data.train.labels.tolist() == list(TRAIN.values())
    assert data.val is not None
    assert len(data.val) == len(data.test) == 6
    assert data.notes == ()


def test_without_a_val_list_some_are_held_out(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST)
    data = load(write_lists(tmp_path, train=TRAIN, test=TEST))
    assert data.split_counts.tolist() == [4, 4, 4]
    assert data.class_counts().tolist() == [3, 3, 3]
    cut = load(tmp_path, cut={"n_max": 3, "imbalance_ratio": 3, "val_per_class": 0})
    assert torch.equal(cut.split_counts, torch.tensor([3, 1, 1]))


def test_missing_images_are_counted_and_named_or_dropped(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST, {"pics/t 4.jpg": "missing", "pics/e0.jpg": "missing"})
    write_lists(tmp_path, train=TRAIN, test=TEST)
    with pytest.raises(DataError, match=r"2 \(1 in train, 1 in test\): pics/t 4\.jpg \(missing\), pics/e0\.jpg \(miss"):
        load(tmp_path)
    data = load(tmp_path, bad_images="skip")
    assert data.split_counts.tolist() == [4, 3, 4]
    assert "(bad_images: skip): unreadable images: 2" in data.notes[0]


def test_white_space_tabs_blank_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST)
    write_lists(tmp_path, test=TEST)
    lines = [f"{path}\t{label}" if label else f"{path}   {label} " for path, label in TRAIN.items()]
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    assert load(tmp_path).split_counts.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"a": 0, "b": 1, "c": 3}, r"labels must be 0 \.\. 3 without gaps, .* no training images: 1 \(2\)"),
        ({"a": 1, "b": 2}, r"labels must be 0 \.\. 2 without gaps.*: 1 \(0\)"),
        ({"a": 0, "b": 900000000}, r"without gaps.*: 899999999 \(1, 2, .*19, 20 and 899999979 more\)"),
        (
            {"a": 0, "b": -1, "c": 1},
            r"train labels must be in 0 \.\. 1, the classes of the training set: 1 \(b has -1\)",
        ),
        ({"a": 0, "b": 1}, r"test labels must be in 0 \.\. 1, .*: 2 \(pics/e2\.jpg has 2, pics/e5\.jpg has 2\)"),
        ({}, "train must contain images, got none"),
    ],
)
def test_invalid_labels_are_named(tmp_path: Path, train: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_lists(tmp_path, train=train, test=TEST))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg", r"train\.txt:2: a line must be a path, a space and a label from 0, got 'a\.jpg'"),
        ("a.jpg one", r"train\.txt:2: a line must be a path"),
        ("a.jpg 1.5", r"train\.txt:2: a line must be a path"),
        ("7", r"train\.txt:2: a line must be a path"),
        ("/home/me/a.jpg 1", r"train\.txt:2: paths must be relative to root, got /home/me/a\.jpg"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_lists(tmp_path, test=TEST)
    (tmp_path / "train.txt").write_text(f"x.jpg 0\n{line}\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_list_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list file .*train\.txt does not exist; check root"):
        load(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"list file .*train\.txt cannot be read"):
        load(tmp_path)


def test_a_list_can_be_pinned_by_its_hash(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST)
    write_lists(tmp_path, train=TRAIN, test=TEST)
    digest = hashlib.sha256((tmp_path / "train.txt").read_bytes()).hexdigest()
    assert len(load(tmp_path, sha256={"train": digest}).test) == 6
    with pytest.raises(DataError, match=rf"test\.txt must have the sha256 {digest}, got [0-9a-f]{{64}}"):
        load(tmp_path, sha256={"test": digest})
    with pytest.raises(SpecError, match=r"image_list\.sha256\.train: must be 64 hex digits"):
        load(tmp_path, sha256={"train": "abc"})
    one, other = ({"kind": "image_list", "root": "x", **pins} for pins in ({}, {"sha256": {"train": digest}}))
    assert DATASETS.parse(one).identity() == DATASETS.parse(other).identity()


def test_the_location_of_lists_is_not_part_of_the_identity(tmp_path: Path) -> None:
    one, other = ({"root": root, "train": f"{root}.txt"} for root in ("a", "b"))
    identities = [DATASETS.parse({"kind": "image_list", **fields}).identity() for fields in (one, other)]
    assert identities[0] == identities[1]


IMAGENET = {
    "train": {f"train/n0144076{k % 3}/n0144076{k % 3}_{k}.JPEG": k % 3 for k in range(9)},
    "val": {f"train/n0144076{k}/n0144076{k}_1{k}.JPEG": k for k in range(3)},
    "test": {f"val/ILSVRC2012_val_0000000{k}.JPEG": k for k in range(3)},
}


def write_imagenet(root: Path, labels: tuple[int, ...] = (0, 1, 2)) -> Path:
    for part, images in IMAGENET.items():
        write_images(root, images)
        write_lists(root, "ImageNet_LT_", **{part: {path: labels[label] for path, label in images.items()}})
    return root


def test_a_miniature_is_read_with_a_note(tmp_path: Path) -> None:
    data = load(write_imagenet(tmp_path), "imagenet_lt", resize=9)
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (9, 3, 3, 3)
    assert data.train.labels.tolist() == list(IMAGENET["train"].values())
    (note,) = data.notes
    assert note.startswith(
        "THIS IS NOT THE PUBLISHED imagenet_lt: train 9 instead of 115846, val 3 instead of 20000, test 3 instead of "
        "50000, 3 classes instead of 1000"
    )


def test_the_published_counts_need_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageNetLT, "published", {"train": 9, "val": 3, "test": 3})
    monkeypatch.setattr(ImageNetLT, "classes", 3)
    assert load(write_imagenet(tmp_path), "imagenet_lt").notes == ()


def test_defaults_of_published_sets() -> None:
    spec = DATASETS.parse({"kind": "imagenet_lt", "root": "x"})
    assert isinstance(spec, ImageNetLT)
    assert (spec.size, spec.resize) == (224, 256)
    assert spec.augmentation == ResizedCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True)
    with pytest.raises(SpecError, match=r"imagenet_lt\.resize: must be at least size \(288\), got 256"):
        DATASETS.parse({"kind": "imagenet_lt", "root": "x", "size": 288})
    padded = DATASETS.parse({"kind": "imagenet_lt", "root": "x", "augmentation": {"pad": 16, "flip": True}})
    assert padded.identity()["augmentation"] == {"kind": "pad_crop", "pad": 16, "flip": True}


def test_a_missing_image_of_a_published_list_is_named(tmp_path: Path) -> None:
    (write_imagenet(tmp_path) / "val/ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(DataError, match=r"1 \(1 in test\): val/ILSVRC2012_val_00000001\.JPEG \(missing\)"):
        load(tmp_path, "imagenet_lt")


def test_labels_that_were_renumbered_are_refused(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path, labels=(1, 0, 2))
    message = (
        r"labels must ascend with the class folders.*; heads .* would not fit: use the published lists, or read these "
        r"with kind image_list: 1 \(n01440761 has 0, after n01440760 with 1\)"
    )
    with pytest.raises(DataError, match=message):
        load(root, "imagenet_lt")
    found = DATASETS.parse({"kind": "imagenet_lt", "root": str(root), "size": 8}).inspect(lambda *_: None)
    assert found.counts is not None
    assert found.counts.tolist() == [3, 3, 3]
    assert [finding.names for finding in found.findings] == [("n01440761 has 0, after n01440760 with 1",)]
    names = {part: f"ImageNet_LT_{part}.txt" for part in IMAGENET}
    assert load(root, **names).train.labels[:3].tolist() == [1, 0, 2]


def test_a_folder_with_two_labels_is_refused(tmp_path: Path) -> None:
    file = write_imagenet(tmp_path) / "ImageNet_LT_val.txt"
    file.write_text(file.read_text().replace("n01440762_12.JPEG 2", "n01440762_12.JPEG 0"))
    with pytest.raises(DataError, match=r"one label for each.*: 1 \(n01440762 has 0, 2\)"):
        load(tmp_path, "imagenet_lt")


def test_two_folders_with_one_label_are_refused(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path, labels=(0, 0, 1))
    with pytest.raises(DataError, match=r"one label for each.*: 1 \(n01440761 has 0, after n01440760 with 0\)"):
        load(root, "imagenet_lt")


INAT_TRAIN = {f"train_val2018/Aves/{2500 + k % 4}/{k:032x}.jpg": k % 4 for k in range(16)}
INAT_VAL = {f"train_val2018/Aves/{2500 + k % 4}/v{k:031x}.jpg": k % 4 for k in range(12)}


def write_inaturalist(root: Path, relabel: Any = lambda label: label) -> Path:
    write_images(root, INAT_TRAIN | INAT_VAL)
    lists = {"train": INAT_TRAIN, "val": INAT_VAL}
    relabelled = {name: {path: relabel(label) for path, label in images.items()} for name, images in lists.items()}
    return write_lists(root, "iNaturalist18_", **relabelled)


def test_inaturalists_validation_images_are_the_test_set(tmp_path: Path) -> None:
    data = load(write_inaturalist(tmp_path), "inaturalist18")
    assert (len(data.train), data.val, len(data.test)) == (16, None, 12)
    assert data.test.inputs.names == list(INAT_VAL)
    (note,) = data.notes
    assert note.startswith(
        "THIS IS NOT THE PUBLISHED inaturalist18: train 16 instead of 437513, test 12 instead of 24426, 4 classes "
        "instead of 8142"
    )


def test_inaturalist_can_hold_out_a_validation_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(INaturalist18, "published", {"train": 16, "test": 12})
    monkeypatch.setattr(INaturalist18, "classes", 4)
    data = load(write_inaturalist(tmp_path), "inaturalist18", val_fraction=0.25)
    assert data.val is not None
    assert (data.class_counts().tolist(), len(data.val)) == ([3, 3, 3, 3], 4)
    assert len(data.notes) == 1


def test_labels_that_do_not_ascend_with_the_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"must ascend with the class folders.*: 3 \(2501 has 2, after 2500 with 3, 2502 has 1, after"
    ):
        load(write_inaturalist(tmp_path, lambda label: 3 - label), "inaturalist18")


def test_folder_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    for part in ("train", "val"):
        images = {f"train_val2018/Aves/{folder}/{part}.jpg": label for label, folder in enumerate((9, 10, 100))}
        write_images(tmp_path, images)
        write_lists(tmp_path, "iNaturalist18_", **{part: images})
    assert load(tmp_path, "inaturalist18").num_classes == 3


def write_places(root: Path, **parts: Mapping[str, int]) -> Path:
    for images in parts.values():
        write_images(root, images)
    return write_lists(root, "Places_LT_", **parts)


def test_places_lists_are_read_with_a_note(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 2, "test": 4}
    parts = {part: {f"airfield/{part}{k:08}.jpg": k % 2 for k in range(count)} for part, count in counts.items()}
    data = load(write_places(tmp_path, **parts), "places_lt")
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 4)
    differs = "train 6 instead of 62500, val 2 instead of 7300, test 4 instead of 36500, 2 classes instead of 365"
    assert differs in data.notes[0]


def test_classes_numbered_by_their_frequency_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlacesLT, "classes", 3)
    counts = {"train": (4, 2, 1), "val": (1, 1, 1), "test": (1, 1, 1)}
    parts = {
        part: {f"{part}{k}{i}.jpg": k for k, count in enumerate(each) for i in range(count)}
        for part, each in counts.items()
    }
    write_places(tmp_path, **parts)
    with pytest.raises(DataError, match=r"numbered by frequency \(from 4 training images of class 0 down to 1 of"):
        load(tmp_path, "places_lt")
    file = tmp_path / "Places_LT_train.txt"
    file.write_text(file.read_text().replace("train10.jpg 1", "train10.jpg 2"))
    assert load(tmp_path, "places_lt").class_counts().tolist() == [4, 1, 2]
