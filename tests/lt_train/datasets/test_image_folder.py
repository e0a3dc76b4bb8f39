"""Folders of images: parts, classes, the long-tailed cut, unreadable images, and equality of files and memory."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.images import write_images, write_tree

from lt_train.core.errors import DataError, SpecError, StorageError
from lt_train.datasets._images.files import ImageFiles
from lt_train.datasets.base import DATASETS, ImageData

PARTS = {"train": {"owl": 9, "crow": 5, "auk": 7}, "val": {"auk": 2, "owl": 2}, "test": {"owl": 3, "auk": 3, "crow": 3}}


def spec(root: Path, **fields: Any) -> Any:
    return DATASETS.parse({"kind": "image_folder", "root": str(root), "size": 8, **fields})


def load(root: Path, **fields: Any) -> ImageData:
    data = spec(root, **fields).load()
    assert isinstance(data, ImageData)
    return data


def names(part: Any) -> list[str]:
    assert isinstance(part.inputs, ImageFiles)
    return part.inputs.names


def test_parts_and_classes_are_folders_in_alphabetical_order(tmp_path: Path) -> None:
    data = load(write_tree(tmp_path, PARTS))
    assert data.class_counts().tolist() == data.split_counts.tolist() == [7, 5, 9]
    assert data.val is not None
    assert (len(data.val), data.val.labels.tolist(), len(data.test)) == (4, [0, 0, 2, 2], 9)
    assert names(data.train)[:2] == ["train/auk/00.jpg", "train/auk/01.jpg"]
    assert data.train.inputs[:].shape == data.train.inputs.shape == (21, 3, 8, 8)
    assert data.notes == ("classes are numbered in alphabetical order: 0 auk, 1 crow, 2 owl",)
    assert data.class_names == ("auk", "crow", "owl")
    assert data.mean == (0.485, 0.456, 0.406)


def test_names_of_folders_may_have_any_bytes(tmp_path: Path) -> None:
    write_tree(tmp_path, PARTS)
    for part in PARTS:
        if (folder := tmp_path / part / "owl").exists():
            folder.rename(os.fsdecode(os.fsencode(tmp_path / part) + b"/h\xfcbou"))
    data = load(tmp_path)
    assert data.class_names == ("auk", "crow", "h\ufffdbou")
    assert data.notes[0].encode().endswith("2 h\ufffdbou".encode())


def test_images_are_found_at_any_depth_and_other_files_are_reported(tmp_path: Path) -> None:
    write_tree(tmp_path, PARTS)
    write_images(tmp_path, {"train/auk/more/9.JPEG": 0})
    (tmp_path / "train/auk/readme.txt").touch()
    (tmp_path / "train/auk/.DS_Store").touch()
    data = load(tmp_path)
    assert "train/auk/more/9.JPEG" in names(data.train)
    assert data.notes[-1] == "files without an image suffix were ignored: 1 (train/auk/readme.txt)"


def test_without_a_test_folder_val_is_the_test_set_and_some_are_held_out(tmp_path: Path) -> None:
    parts = {"train": PARTS["train"], "val": PARTS["test"]}
    data = load(write_tree(tmp_path, parts), val_fraction=0.3)
    assert data.split_counts.tolist() == [7, 5, 9]
    assert data.class_counts().tolist() == [5, 4, 7]
    assert any("so val is the test set" in note for note in data.notes)
    assert any("5 of 21 training images were held out" in note for note in data.notes)
    assert len(data.test) == 9
    assert load(tmp_path, val_fraction=0).val is None


def test_a_tree_without_parts_gets_a_test_set(tmp_path: Path) -> None:
    data = load(write_tree(tmp_path, {"": {"a": 10, "b": 5}}), val_fraction=0)
    assert torch.bincount(data.test.labels).tolist() == [2, 1]
    assert data.split_counts.tolist() == [8, 4]
    assert not {*names(data.train)} & {*names(data.test)}
    assert "3 of 15 images were held out as the test set" in data.notes[1]


def test_a_long_tail_can_be_cut(tmp_path: Path) -> None:
    parts = {"train": {"a": 12, "b": 12, "c": 12}, "test": {"a": 2, "b": 2, "c": 2}}
    data = load(write_tree(tmp_path, parts), cut={"n_max": 8, "imbalance_ratio": 4, "val_per_class": 3})
    assert data.class_counts().tolist() == data.split_counts.tolist() == [8, 4, 2]
    assert data.val is not None
    assert torch.bincount(data.val.labels).tolist() == [3, 3, 3]
    assert names(data.train)[8] == "train/b/00.jpg"
    assert names(data.val)[0] == "train/a/08.jpg"
    with pytest.raises(DataError, match="class 0 needs 13 training images and has only 12"):
        load(tmp_path, cut={"n_max": 13, "imbalance_ratio": 4})


def test_a_val_folder_stays_the_validation_set_of_a_cut(tmp_path: Path) -> None:
    data = load(write_tree(tmp_path, PARTS), cut={"n_max": 4, "imbalance_ratio": 2})
    assert data.class_counts().tolist() == [4, 2, 2]
    assert data.val is not None
    assert names(data.val)[0] == "val/auk/00.jpg"


def test_files_and_memory_are_the_same_data(tmp_path: Path) -> None:
    root = write_tree(tmp_path, PARTS)
    held, in_files = load(root), load(root, in_memory=0)
    for one, other in zip(
        (held.train, held.val, held.test), (in_files.train, in_files.val, in_files.test), strict=True
    ):
        assert one is not None
        assert other is not None
        assert one.inputs.in_memory
        assert not other.inputs.in_memory
        assert one.digest() == other.digest()
        assert torch.equal(one.inputs[:], other.inputs[:])
    assert spec(root).identity() == spec(root, in_memory=0, check="whole", bad_images="skip").identity()
    exactly = 3 * 8 * 8 * 34
    assert load(root, in_memory=exactly).train.inputs.in_memory
    assert not load(root, in_memory=exactly - 1).train.inputs.in_memory


BAD = {
    "train/auk/01.jpg": "empty",
    "train/auk/02.jpg": "truncated",
    "test/owl/00.jpg": "page",
}


def test_bad_images_are_refused_with_their_count_and_names(tmp_path: Path) -> None:
    root = write_tree(tmp_path, PARTS, BAD)
    with pytest.raises(
        DataError,
        match=r"^unreadable images: 3 \(2 in train, 1 in test\): train/auk/01\.jpg \(0 bytes\), "
        r"train/auk/02\.jpg \(.*truncated.*\), test/owl/00\.jpg \(not an image.*bad_images: skip$",
    ):
        load(root)


def test_bad_images_can_be_dropped_and_are_named(tmp_path: Path) -> None:
    data = load(write_tree(tmp_path, PARTS, BAD), bad_images="skip")
    assert data.split_counts.tolist() == [5, 5, 9]
    assert len(data.test) == 8
    assert data.notes[1].startswith("dropped (bad_images: skip): unreadable images: 3 (2 in train, 1 in test)")
    assert not {*BAD} & {*names(data.train), *names(data.test)}


@pytest.mark.skipif(sys.platform != "linux", reason="simulates an I/O error with a Linux file")
def test_an_io_error_is_raised_and_not_skipped_and_the_check_names_it(tmp_path: Path) -> None:
    root = write_tree(tmp_path, PARTS)
    (root / "train/owl/03.jpg").unlink()
    (root / "train/owl/03.jpg").symlink_to("/proc/self/mem")  # exists, and reading it fails
    for bad_images in ("skip", "fail"):
        with pytest.raises(
            StorageError, match=r"image train/owl/03\.jpg cannot be read \(\[Errno .*check its disk and permissions"
        ):
            load(root, bad_images=bad_images)
    (finding,) = spec(root).inspect(lambda *_: None).findings
    assert str(finding).startswith("train images are unreadable: 1 (train/owl/03.jpg (")


def test_at_most_twenty_bad_images_are_named(tmp_path: Path) -> None:
    broken = {f"train/a/{number:02}.jpg": "empty" for number in range(25)}
    root = write_tree(tmp_path, {"train": {"a": 30, "b": 3}, "test": {"a": 1, "b": 1}}, broken)
    with pytest.raises(DataError, match=r"25 \(25 in train\).*train/a/19\.jpg \(0 bytes\) and 5 more"):
        load(root)


def test_a_class_that_loses_all_its_images_is_refused(tmp_path: Path) -> None:
    broken = {f"train/crow/{number:02}.jpg": "empty" for number in range(5)}
    with pytest.raises(DataError, match=r"every class needs a readable training image, and these have none: 1$"):
        load(write_tree(tmp_path, PARTS, broken), bad_images="skip")


def test_a_part_that_loses_all_its_images_is_refused(tmp_path: Path) -> None:
    broken = {f"val/{name}/{number:02}.jpg": "empty" for name in ("auk", "owl") for number in range(2)}
    with pytest.raises(DataError, match="val must have readable images, got none"):
        load(write_tree(tmp_path, PARTS, broken), bad_images="skip")


def test_the_whole_check_finds_damage_inside_a_jpeg(tmp_path: Path) -> None:
    root = write_tree(tmp_path, PARTS)
    (root / "train/owl/03.jpg").write_bytes(b"\xff\xd8\xff" + b"\0" * 90 + b"\xff\xd9")
    assert len(load(root, check="whole", bad_images="skip").train) == 20
    with pytest.raises(DataError, match=r"unreadable images: 1 \(1 in train\): train/owl/03\.jpg"):
        load(root, check="whole")
    held = load(root)  # decodes its images; the damaged one is reported on access
    with pytest.raises(DataError, match=r"image train/owl/03\.jpg cannot be decoded"):
        held.train.inputs[:]
    with pytest.raises(DataError, match=r"image train/owl/03\.jpg cannot be decoded"):
        held.train.inputs.refuse_unreadable()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": {"a": 2}, "test": {"a": 1}}, "must contain one folder per class for at least two classes, got a"),
        ({"train": {"a": 2, "b": 2}}, "has a train folder, but neither test nor val"),
        ({"train": {"a": 2, "b": 2}, "test": {"b": 1, "c": 1}}, "must have the classes of train, but has others: c"),
    ],
)
def test_invalid_folder_structures_are_refused(tmp_path: Path, parts: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_tree(tmp_path, parts))


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, PARTS)
    (tmp_path / "train/bat").mkdir()
    with pytest.raises(DataError, match=r"some classes have no training images: 1 \(1 \(bat\)\)"):
        load(tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"root must be a folder of images, but .*nowhere is not a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": 7}, r"image_folder\.resize: must be at least size \(8\), got 7"),
        ({"std": [1, 0, 1]}, r"image_folder\.std: must be above 0 for every channel"),
        ({"bad_images": "ignore"}, r"image_folder\.bad_images: must be 'fail' or 'skip'"),
        ({"cut": {"imbalance_ratio": 10}}, r"image_folder\.cut\.n_max: is required"),
        (
            {"augmentation": "resize_crop"},
            r"augmentation\.kind: unknown kind 'resize_crop'; did you mean 'resized_crop'",
        ),
        ({"augmentation": 7}, r"augmentation: must be a mapping"),
        ({"augmentation": {"pad": -1, "flip": True}}, r"augmentation\.pad: must be at least 0, got -1"),
        (
            {"augmentation": {"kind": "resized_crop", "scale": [0.5, 0.2]}},
            r"augmentation\.scale: must be two numbers above 0 in ascending order, got \[0\.5, 0\.2\]",
        ),
        (
            {"augmentation": {"kind": "resized_crop", "scale": [0.5, 2]}},
            r"augmentation\.scale: must be shares of the image, at most 1, got \[0\.5, 2\.0\]",
        ),
        (
            {"augmentation": {"kind": "resized_crop", "ratio": [0, 2]}},
            r"augmentation\.ratio: must be two numbers above 0",
        ),
    ],
)
def test_an_invalid_field_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(tmp_path, **fields)
