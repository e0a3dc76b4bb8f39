"""FashionMNIST from its idx files: the real ones if installed, and damaged ones written here."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from lt_train.core.errors import DataError
from lt_train.datasets.base import DATASETS, ImageData

INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def write_idx(folder: Path, per_class: int = 30) -> None:
    """All four files in the published format, uncompressed, with noise for images."""
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        labels = torch.arange(10 * per_class) % 10
        images = torch.randint(0, 256, (len(labels), 28, 28), generator=torch.Generator().manual_seed(0))
        header = struct.pack(">HBBiii", 0, 8, 3, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(images.flatten().tolist()))
        header = struct.pack(">HBBi", 0, 8, 1, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(labels.tolist()))


def load(root: Path, **fields: float) -> ImageData:
    data = DATASETS.parse({"kind": "fashion_mnist_lt", "root": str(root), **fields}).load()
    assert isinstance(data, ImageData)
    return data


@pytest.mark.skipif(not INSTALLED.is_dir(), reason=f"the package dataset-fashion-mnist is not installed in {INSTALLED}")
def test_the_installed_files_give_the_known_cut() -> None:
    data = load(INSTALLED)
    assert data.class_counts().tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.val is not None
    assert torch.bincount(data.val.labels).tolist() == [100] * 10
    published_first_train_label = 9  # an ankle boot
    boots = data.val.inputs[data.val.labels == published_first_train_label]
    assert boots.shape == (100, 1, 28, 28)
    mean = (data.test.inputs.float() / 255).mean()
    assert abs(float(mean) - 0.2860) < 0.002
    assert data.notes == ()


@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_both_layouts_are_found_packed_or_not(tmp_path: Path, inside: str, packed: bool) -> None:
    folder = tmp_path / "root" / inside
    write_idx(folder)
    if packed:
        for file in list(folder.iterdir()):
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    data = load(tmp_path / "root", n_max=20, imbalance_ratio=10, val_per_class=3)
    assert data.split_counts.tolist()[0] == 20
    assert data.train.inputs.shape[1:] == (1, 28, 28)


def test_a_missing_folder_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"root {tmp_path}/nowhere must contain .* set download: true"):
        load(tmp_path / "nowhere")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "root")
    file = tmp_path / "root" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{file} is truncated or altered: 235199 bytes"):
        load(tmp_path / "root", n_max=20)


def test_a_truncated_gz_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "root")
    file = tmp_path / "root" / "t10k-labels-idx1-ubyte"
    packed = file.with_name(file.name + ".gz")
    packed.write_bytes(gzip.compress(file.read_bytes())[:-9])
    file.unlink()
    with pytest.raises(DataError, match=rf"{packed} cannot be read"):
        load(tmp_path / "root", n_max=20)


def test_another_format_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "root")
    file = tmp_path / "root" / "train-labels-idx1-ubyte"
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=rf"{file} is not an idx file of unsigned bytes with 1 dimension"):
        load(tmp_path / "root", n_max=20)


def test_a_missing_companion_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "root")
    (tmp_path / "root" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte \(.gz or not\) is missing"):
        load(tmp_path / "root", n_max=20)
