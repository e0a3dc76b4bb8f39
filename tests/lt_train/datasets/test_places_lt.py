"""Places-LT's list files, on a miniature tree."""

from pathlib import Path

import pytest
from support.images import write_images

from lt_train.core.errors import DataError
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.datasets.places_lt import PlacesLT


def test_its_lists_are_read_and_a_miniature_is_told(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 2), ("test", 4)):
        images = {f"data_large/a/airfield/{part}{k:08}.jpg": k % 2 for k in range(count)}
        write_images(tmp_path, images)
        lines = [f"{path} {label}\n" for path, label in images.items()]
        (tmp_path / f"Places_LT_{part}.txt").write_text("".join(lines))
    data = DATASETS.parse({"kind": "places_lt", "root": str(tmp_path), "size": 8}).load()
    assert isinstance(data, ImageData)
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 4)
    assert (
        "train 6 instead of 62500, val 2 instead of 7300, test 4 instead of 36500, 2 classes instead of 365"
        in (data.notes[0])
    )


def test_classes_numbered_by_their_frequency_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlacesLT, "classes", 3)
    for counts, part in (((4, 2, 1), "train"), ((1, 1, 1), "val"), ((1, 1, 1), "test")):
        images = {f"data_large/{part}{k}{i}.jpg": k for k, count in enumerate(counts) for i in range(count)}
        write_images(tmp_path, images)
        lines = [f"{path} {label}\n" for path, label in images.items()]
        (tmp_path / f"Places_LT_{part}.txt").write_text("".join(lines))
    spec = DATASETS.parse({"kind": "places_lt", "root": str(tmp_path), "size": 8})
    with pytest.raises(
        DataError, match=r"classes are numbered by frequency \(4 training images of class 0, .* to 1 of class 2\)"
    ):
        spec.load()
    file = tmp_path / "Places_LT_train.txt"
    file.write_text(file.read_text().replace("train10.jpg 1", "train10.jpg 2"))
    data = spec.load()
    assert isinstance(data, ImageData)
    assert data.class_counts().tolist() == [4, 1, 2]
