"""CIFAR from pickles in the published layout, and pickles that must be refused."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lt_train.core.errors import DataError
from lt_train.datasets.base import DATASETS, ImageData


def batch(key: str, num_classes: int, per_class: int, seed: int) -> dict[str, Any]:
    labels = np.tile(np.arange(num_classes), per_class)
    data = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return {"data": data, key: labels.tolist(), "filenames": ["x.png"] * len(labels), "batch_label": "a batch"}


def write_cifar100(root: Path, per_class: int = 25) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        document = batch("fine_labels", 100, per_class, seed)
        document["coarse_labels"] = [0] * len(document["fine_labels"])
        (folder / name).write_bytes(pickle.dumps(document, protocol=2))
    return folder


def published_pickle(file: Path, labels: list[int]) -> None:
    """A part as Python 2 pickled the published archive, opcode by opcode: text as bytes, numpy by its old name."""

    def text(word: str) -> bytes:
        return b"U" + bytes([len(word)]) + word.encode()

    def numbers(values: list[int]) -> bytes:
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"

    size = struct.pack("<i", 3072 * len(labels))
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    shape = b"M" + struct.pack("<H", len(labels)) + b"M\x00\x0c\x86"
    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN" + 2 * minus_one + b"K\x00tb"
    with file.open("wb") as out:
        out.write(b"\x80\x02}(" + text("fine_labels") + numbers(labels) + text("coarse_labels") + numbers([0]))
        out.write(text("batch_label") + text("a batch") + text("filenames") + b"](" + text("x.png") + b"e")
        out.write(text("data") + array + b"(K\x01" + shape + dtype + b"\x89T" + size)
        for place, label in enumerate(labels):
            out.write(bytes([label, place % 256]) + bytes(3070))
        out.write(b"tbu.")


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 50,000 and 10,000 images, classes in a mixed order."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-100-python"
    folder.mkdir()
    for name, per_class in (("train", 500), ("test", 100)):
        published_pickle(folder / name, np.random.default_rng(0).permutation(np.arange(100).repeat(per_class)).tolist())
    return folder


@pytest.mark.parametrize(
    ("ratio", "total", "splits"), [(100, 10_847, (35, 35, 30)), (50, 12_608, (41, 41, 18)), (10, 19_573, (69, 31, 0))]
)
def test_the_published_format_gives_the_papers_counts(
    full_size: Path, ratio: float, total: int, splits: tuple[int, ...]
) -> None:
    data = load({"kind": "cifar100_lt", "root": str(full_size), "imbalance_ratio": ratio, "val_per_class": 0})
    assert (len(data.train), len(data.test), data.val) == (total, 10_000, None)
    counts = data.class_counts()
    assert (counts[0], counts[-1]) == (500, 500 // ratio)
    many, few = int((counts > 100).sum()), int((counts < 20).sum())
    assert (many, 100 - many - few, few) == splits
    assert torch.equal(data.train.inputs[:, 0, 0, 0].long(), data.train.labels)  # each image has its own label


def load(document: dict[str, Any]) -> ImageData:
    data = DATASETS.parse(document).load()
    assert isinstance(data, ImageData)
    return data


@pytest.mark.parametrize("inside", [False, True])
def test_cifar100_is_read_from_its_folder_or_the_one_around(tmp_path: Path, inside: bool) -> None:
    folder = write_cifar100(tmp_path)
    root = folder if inside else tmp_path
    data = load({"kind": "cifar100_lt", "root": str(root), "n_max": 20, "imbalance_ratio": 10, "val_per_class": 2})
    published = pickle.loads((folder / "train").read_bytes(), encoding="latin1")
    red_green_blue = published["data"][0].reshape(3, 32, 32)
    assert np.array_equal(data.train.inputs[0].numpy(), red_green_blue)
    assert data.class_counts()[0] == 20
    assert data.class_counts()[-1] == 2
    assert len(data.test) == 2500
    assert len(data.notes) == 2
    assert "is not the published 16019d7e3df5f24257cddd939b257f8d" in data.notes[0]


def test_a_missing_folder_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"root must be cifar-100-python or contain it.*{tmp_path} .*download: true"):
        load({"kind": "cifar100_lt", "root": str(tmp_path)})


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path)
    trace = tmp_path / "it ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(trace),))

    (folder / "train").write_bytes(pickle.dumps({"data": Malicious(), "fine_labels": []}, protocol=2))
    with pytest.raises(DataError, match=r"train was refused: it refers to posix\.mkdir, but only numpy arrays"):
        load({"kind": "cifar100_lt", "root": str(tmp_path)})
    assert not trace.exists()


def test_another_codec_is_refused(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path)
    (folder / "train").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00idna5\x86R.")
    with pytest.raises(DataError, match=r"train (was refused|cannot be read)"):
        load({"kind": "cifar100_lt", "root": str(tmp_path)})


def test_a_truncated_pickle_is_named(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path)
    (folder / "test").write_bytes((folder / "test").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"test (cannot be read|was refused)"):
        load({"kind": "cifar100_lt", "root": str(tmp_path), "n_max": 20, "imbalance_ratio": 10})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": [1, 2]}, r"must contain `data`, a uint8 array \[N, 3072\]"),
        ({"fine_labels": [100] * 2500}, r"must contain `fine_labels`, a list of classes from 0 to 99"),
        ({"fine_labels": [0]}, r"as many labels as images, got 1 and 2500"),
    ],
)
def test_another_layout_is_named(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    folder = write_cifar100(tmp_path)
    document = batch("fine_labels", 100, 25, 0) | change
    (folder / "train").write_bytes(pickle.dumps(document, protocol=2))
    with pytest.raises(DataError, match=match):
        load({"kind": "cifar100_lt", "root": str(tmp_path)})


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path)
    document = batch("fine_labels", 100, 25, 0)
    document["fine_labels"] = [0 if k == 7 else k for k in document["fine_labels"]]
    (folder / "train").write_bytes(pickle.dumps(document, protocol=2))
    with pytest.raises(DataError, match=r"class 7 needs \d+ training images and has no image"):
        load({"kind": "cifar100_lt", "root": str(tmp_path), "n_max": 20, "imbalance_ratio": 10})


def test_cifar10_joins_its_five_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(pickle.dumps(batch("labels", 10, 4, seed), protocol=2))
    data = load({"kind": "cifar10_lt", "root": str(tmp_path), "n_max": 15, "imbalance_ratio": 5, "val_per_class": 0})
    assert data.class_counts().tolist()[0] == 15
    second = pickle.loads((folder / "data_batch_2").read_bytes(), encoding="latin1")["data"][0]
    assert torch.equal(data.train.inputs[4].flatten(), torch.from_numpy(second))  # class 0: four per batch
    assert data.val is None
