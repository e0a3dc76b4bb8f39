"""Hugging Face's parquet files, written as `datasets` writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.images import encoded

from lt_train.core.errors import DataError
from lt_train.datasets._images.decode import Decoder
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.datasets.hf_images import _class_names


def write(
    file: Path, labels: list[Any], image: str = "image", label: str = "label", first: int = 0, bad: Any = ()
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": encoded(k or 0, first + row), "path": f"{row}.jpg"} for row, k in enumerate(labels)]
    for row, content in dict(bad).items():
        rows[row]["bytes"] = content
    names = {
        "info": {
            "features": {
                label: {"names": ["ant", "bee", "cat"][: max(k or 0 for k in labels) + 1], "_type": "ClassLabel"}
            }
        }
    }
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels, pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, file, row_group_size=4)


def load(root: Path, **fields: Any) -> ImageData:
    data = DATASETS.parse({"kind": "hf_images", "root": str(root), "size": 8, **fields}).load()
    assert isinstance(data, ImageData)
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "data/train-00000-of-00002.parquet", [0, 1, 2] * 3)
    write(tmp_path / "data/train-00001-of-00002.parquet", [0, 0, 1, 1, 2], first=9)
    write(tmp_path / "data/validation-00000-of-00001.parquet", [0, 1, 2], first=14)
    write(tmp_path / "data/test-00000-of-00001.parquet", [2, 1, 0], first=17)
    return tmp_path


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_files_of_a_part_are_joined_in_order(root: Path, in_memory: int) -> None:
    data = load(root, in_memory=in_memory)
    assert data.split_counts.tolist() == [5, 5, 4]
    assert data.val is not None
    assert (len(data.val), data.test.labels.tolist()) == (3, [2, 1, 0])
    for place, (label, seed) in {0: (0, 0), 7: (1, 7), 9: (0, 9), 13: (2, 13)}.items():
        assert np.array_equal(data.train.inputs[place].numpy(), Decoder(8, 8)(encoded(label, seed)))
    assert data.train.inputs.names[9] == "data/train-00001-of-00002.parquet#0"
    assert data.notes == ("class names: 0 ant, 1 bee, 2 cat",)


def test_files_and_memory_have_one_digest(root: Path) -> None:
    held, decoded_later = load(root), load(root, in_memory=0)
    assert held.train.digest() == decoded_later.train.digest()
    assert torch.equal(held.train.inputs[:], decoded_later.train.inputs[:])


def test_parts_may_be_folders_and_columns_have_other_names(tmp_path: Path) -> None:
    write(tmp_path / "default/train/0000.parquet", [0, 1] * 4, "img", "fine_label")
    write(tmp_path / "default/test/0000.parquet", [0, 1], "img", "fine_label")
    data = load(tmp_path, image="img", label="fine_label", cut={"n_max": 2, "imbalance_ratio": 2, "val_per_class": 1})
    assert data.class_counts().tolist() == [2, 1]
    with pytest.raises(DataError, match=r"must have a column 'image', got img, fine_label"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"column 'fine_label' must contain structs \{bytes, path\}, got int64"):
        load(tmp_path, image="fine_label", label="fine_label")
    with pytest.raises(DataError, match=r"column 'img' must contain integers, got struct"):
        load(tmp_path, image="img", label="img")


def test_bad_rows_are_named(root: Path) -> None:
    write(root / "data/test-00000-of-00001.parquet", [2, 1, 0], bad={0: None, 1: b"", 2: encoded(0, 0)[:200]})
    name = r"data/test-00000-of-00001\.parquet"
    with pytest.raises(
        DataError, match=rf"unreadable images: 3 \(3 in test\): {name}#0 \(missing\), {name}#1 \(0 bytes\), {name}#2 \("
    ):
        load(root)


def test_invalid_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must contain parquet files whose name or folder starts with train"):
        load(tmp_path)
    write(tmp_path / "train.parquet", [0, 1, None])
    with pytest.raises(DataError, match="must contain parquet files of a test or val part"):
        load(tmp_path)
    write(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(DataError, match=r"column 'label' must contain a label in every row, got null"):
        load(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"must have at most encoded_in_memory 10 bytes, got \d+"):
        load(tmp_path, encoded_in_memory=10)


def test_names_of_classes_that_are_nested_too_deeply_are_ignored() -> None:
    schema = pa.schema([("label", pa.int64())], metadata={"huggingface": "[" * 300_000})
    assert _class_names(schema, "label") == ()
