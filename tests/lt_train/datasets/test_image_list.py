"""List files of one's own: the format, labels that have gaps or are out of range, missing images."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from support.images import write_images

from lt_train.core.errors import DataError, SpecError
from lt_train.datasets._images.files import ImageFiles
from lt_train.datasets.base import DATASETS, ImageData

TRAIN = {f"pics/t {k}.jpg": k % 3 for k in range(12)}
TEST = {f"pics/e{k}.jpg": k % 3 for k in range(6)}


def write_lists(root: Path, **lists: dict[str, int]) -> Path:
    for name, images in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{path} {label}\n" for path, label in images.items()))
    return root


def load(root: Path, **fields: Any) -> ImageData:
    data = DATASETS.parse({"kind": "image_list", "root": str(root), "size": 8, **fields}).load()
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


def test_missing_images_are_counted_and_named_or_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST, {"pics/t 4.jpg": "missing", "pics/e0.jpg": "missing"})
    write_lists(tmp_path, train=TRAIN, test=TEST)
    with pytest.raises(
        DataError, match=r"used: 2 \(1 in train, 1 in test\): pics/t 4\.jpg \(missing\), pics/e0\.jpg \(missing\)"
    ):
        load(tmp_path)
    data = load(tmp_path, bad_images="skip")
    assert data.split_counts.tolist() == [4, 3, 4]
    assert "left out (bad_images: skip): images that cannot be used: 2" in data.notes[0]


def test_white_space_tabs_blank_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST)
    write_lists(tmp_path, test=TEST)
    lines = [f"{path}\t{label}" if label else f"{path}   {label} " for path, label in TRAIN.items()]
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    assert load(tmp_path).split_counts.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"a": 0, "b": 1, "c": 3}, r"labels must be 0 \.\. 3 without gaps, .* without training images: 1 \(2\)"),
        ({"a": 1, "b": 2}, r"labels must be 0 \.\. 2 without gaps.*: 1 \(0\)"),
        ({"a": 0, "b": 900000000}, r"without gaps.*: 899999999 \(1, 2, .*19, 20 and 899999979 more\)"),
        (
            {"a": 0, "b": -1, "c": 1},
            r"train labels must be in 0 \.\. 1, the classes of the training set: 1 \(b has -1\)",
        ),
        ({"a": 0, "b": 1}, r"test labels must be in 0 \.\. 1, .*: 2 \(pics/e2\.jpg has 2, pics/e5\.jpg has 2\)"),
        ({}, "train must have images, and has none"),
    ],
)
def test_labels_that_are_no_classes_are_named(tmp_path: Path, train: dict[str, int], message: str) -> None:
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
def test_a_line_that_is_no_image_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_lists(tmp_path, test=TEST)
    (tmp_path / "train.txt").write_text(f"x.jpg 0\n{line}\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_list_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list file .*train\.txt does not exist; correct root"):
        load(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"list file .*train\.txt cannot be read"):
        load(tmp_path)


def test_a_list_may_be_pinned_by_its_hash(tmp_path: Path) -> None:
    write_images(tmp_path, TRAIN | TEST)
    write_lists(tmp_path, train=TRAIN, test=TEST)
    digest = hashlib.sha256((tmp_path / "train.txt").read_bytes()).hexdigest()
    assert len(load(tmp_path, sha256={"train": digest}).test) == 6
    with pytest.raises(DataError, match=rf"test\.txt must have the sha256 {digest}, got [0-9a-f]{{64}}: it is another"):
        load(tmp_path, sha256={"test": digest})
    with pytest.raises(SpecError, match=r"image_list\.sha256\.train: must be 64 digits"):
        load(tmp_path, sha256={"train": "abc"})
    one, other = ({"kind": "image_list", "root": "x", **pins} for pins in ({}, {"sha256": {"train": digest}}))
    assert DATASETS.parse(one).identity() == DATASETS.parse(other).identity()


def test_where_lists_lie_does_not_decide_what_the_data_is(tmp_path: Path) -> None:
    one, other = ({"root": root, "train": f"{root}.txt"} for root in ("a", "b"))
    identities = [DATASETS.parse({"kind": "image_list", **fields}).identity() for fields in (one, other)]
    assert identities[0] == identities[1]
