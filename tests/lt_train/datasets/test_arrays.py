"""`arrays`: what is read, and every defect that is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lt_train.core.errors import DataError
from lt_train.datasets.base import DATASETS, FeatureData, ImageData


def features(**changes: Any) -> dict[str, Any]:
    """Three classes of 10, 6 and 4 features with four dimensions; a change of None takes a key away."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_features": rng.normal(size=(20, 4)).astype(np.float32),
        "train_labels": np.repeat([0, 1, 2], [10, 6, 4]),
        "test_features": rng.normal(size=(9, 4)),
        "test_labels": np.tile([0, 1, 2], 3).astype(np.int32),
    }
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


def images(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = features(
        train_features=None,
        test_features=None,
        train_images=rng.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8).transpose(0, 3, 1, 2),
        test_images=rng.integers(0, 256, (9, 3, 6, 6), dtype=np.uint8),
    )
    return arrays | changes


def load(tmp_path: Path, arrays: dict[str, Any], **fields: Any) -> FeatureData | ImageData:
    file = tmp_path / "mine.npz"
    np.savez(file, **arrays)
    return DATASETS.parse({"kind": "arrays", "path": str(file), **fields}).load()


def test_features_are_taken_with_a_stratified_hold_out(tmp_path: Path) -> None:
    data = load(tmp_path, features())
    assert isinstance(data, FeatureData)
    assert data.train.inputs.shape == (1, 16, 4)
    assert data.test.inputs.shape == (1, 9, 4)
    assert data.test.inputs.dtype == torch.float32
    assert data.split_counts.tolist() == [10, 6, 4]
    assert data.val is not None
    assert torch.bincount(data.val.labels).tolist() == [2, 1, 1]
    assert data.head is None
    assert "4 of 20 training images were held out" in data.notes[0]


def test_views_validation_and_head_are_kept_as_given(tmp_path: Path) -> None:
    weight = np.ones((3, 4), np.float32)
    given = features(
        train_features=np.arange(2 * 20 * 4, dtype=np.float32).reshape(2, 20, 4),
        val_features=np.zeros((3, 4), np.float16),
        val_labels=np.arange(3),
        weight=weight,
    )
    data = load(tmp_path, given)
    assert isinstance(data, FeatureData)
    assert torch.equal(data.train.inputs, torch.from_numpy(given["train_features"]))
    assert data.val is not None
    assert data.val.inputs.shape == (1, 3, 4)
    assert data.head is not None
    assert torch.equal(data.head[0], torch.from_numpy(weight))
    assert data.head[1].tolist() == [0, 0, 0]
    assert data.notes == ()


def test_a_hold_out_keeps_every_view_of_what_stays(tmp_path: Path) -> None:
    views = np.arange(2 * 20 * 4, dtype=np.float32).reshape(2, 20, 4)
    data = load(tmp_path, features(train_features=views))
    assert isinstance(data, FeatureData)
    assert data.val is not None
    assert data.train.inputs.shape == (2, 16, 4)
    assert data.val.inputs.shape == (1, 4, 4)
    both = torch.cat([data.train.inputs[0], data.val.inputs[0]])
    assert torch.equal(both.sort(dim=0).values, torch.from_numpy(views[0]))


def test_no_hold_out_on_request(tmp_path: Path) -> None:
    data = load(tmp_path, features(), val_fraction=0)
    assert data.val is None
    assert len(data.train) == 20


def test_safetensors_are_the_same_as_npz(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    save_file(features(), file)
    data = DATASETS.parse({"kind": "arrays", "path": str(file)}).load()
    assert data.train.digest() == load(tmp_path, features()).train.digest()


def test_images_get_their_own_statistics(tmp_path: Path) -> None:
    given = images()
    data = load(tmp_path, given, val_fraction=0, augmentation={"pad": 2, "flip": True})
    assert isinstance(data, ImageData)
    assert np.array_equal(data.train.inputs.numpy(), given["train_images"])
    scaled = given["train_images"] / 255
    assert data.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist())
    assert data.std == pytest.approx(scaled.std(axis=(0, 2, 3)).tolist())
    assert data.augmentation.pad == 2


def test_grey_images_get_a_channel(tmp_path: Path) -> None:
    grey = {name: array[:, 0] if "images" in name else array for name, array in images().items()}
    data = load(tmp_path, grey)
    assert data.train.inputs.shape[1:] == (1, 6, 6)


NAN = np.zeros((20, 4), np.float32)
NAN[3, 1], NAN[5, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_labels": None}, "train_labels is missing"),
        ({"test_features": None}, "test_features is missing"),
        ({"train_features": None}, "must contain features: .*; got test_features, test_labels, train_labels"),
        (
            {"train_features": NAN},
            r"train_features must be finite, got 2 NaN or infinite values, the first at \[3, 1\]",
        ),
        ({"test_features": np.full((9, 4), 1e300)}, "test_features must be finite, got 36"),
        ({"train_features": np.zeros(20, np.float32)}, r"train_features must be floats \[N, D\] .* got float32 \[20\]"),
        ({"train_features": np.zeros((20, 4), np.int64)}, "train_features must be floats .* got int64"),
        ({"train_features": np.zeros((19, 4), np.float32)}, r"train_labels must be integers \[N\] with the N = 19"),
        ({"train_labels": np.zeros(20)}, "train_labels must be integers .* got float64"),
        ({"test_features": np.zeros((9, 5), np.float32)}, "test_features must have the 4 dimensions .* got 5"),
        ({"train_labels": np.repeat([0, 1, 3], [10, 6, 4])}, "class 2 has none"),
        ({"train_labels": np.repeat([0, 1, 2**40], [10, 6, 4])}, r"class 2 has none \(1099511627774 of 1099511627777 "),
        ({"test_labels": np.tile([0, 1, 2**40], 3)}, r"class 3 has none \(1099511627774 of 1099511627777 classes"),
        ({"test_labels": np.tile([0, 1, -1], 3)}, r"test_labels must be in 0 \.\. 2, got -1 \(3 outside\)"),
        ({"weight": np.zeros((2, 4), np.float32)}, r"train_labels must be in 0 \.\. 1, got 2"),
        ({"weight": np.zeros((4, 4), np.float32)}, "class 3 has none"),
        ({"weight": np.zeros((3, 5), np.float32)}, "weight must be floats .* D = 4"),
        ({"weight": np.zeros((3, 4), np.float32), "bias": np.zeros(2, np.float32)}, "bias must be floats .* K = 3"),
        ({"train_labels": np.zeros(20, int), "test_labels": np.zeros(9, int)}, "must be at least two classes, got 1"),
        ({"train_labels": np.array([object()] * 20)}, "cannot be read .*allow_pickle"),
    ],
)
def test_invalid_features_are_named(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(tmp_path, features(**changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_images": np.zeros((20, 6, 6), np.float32)}, "train_images must be uint8 .* got float32"),
        ({"test_images": np.zeros((9, 3, 6, 7), np.uint8)}, r"test_images must have the shape \[3, 6, 6\]"),
        (
            {"train_images": np.zeros((20, 6, 6, 3), np.uint8)},
            r"train_images must be .* transpose to \[N, C, H, W\], got uint8 \[20, 6, 6, 3\]",
        ),
        ({"train_images": np.zeros((20, 6, 6, 1), np.uint8)}, r"train_images .* transpose to \[N, C, H, W\]"),
        ({"test_images": np.zeros((9, 6, 6, 4), np.uint8)}, r"test_images .* transpose to \[N, C, H, W\]"),
        (
            {"val_images": np.zeros((3, 6, 6, 3), np.uint8), "val_labels": np.arange(3)},
            r"val_images .* transpose to \[N, C, H, W\]",
        ),
        ({"train_labels": np.zeros(20, int), "test_labels": np.zeros(9, int)}, "at least two classes, got 1"),
    ],
)
def test_invalid_images_are_named(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(tmp_path, images(**changes))


HEAD, HALF = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (
            {"val_labels": np.arange(3)},
            "val_labels requires val_features, which is missing; recognised names: ",
        ),
        ({"bias": HEAD[:, 0]}, "bias requires weight, which is missing; .*, weight, bias$"),
        ({"weights": HEAD}, "weights is not a recognised name; did you mean 'weight'"),
        ({"weight": HEAD, "biases": HEAD[:, 0]}, "biases is not a recognised name; did you mean 'bias'"),
        ({"val_feature": HALF, "val_labels": np.arange(3)}, "val_labels requires val_features"),
        (
            {"valid_features": HALF},
            r"valid_features .* 'val_features'\? Rename or remove it",
        ),
        (
            {"test_feature": HALF, "test_features": None},
            "test_feature is not a recognised name; did you mean 'test_features'",
        ),
    ],
)
def test_typos_in_names_are_refused(tmp_path: Path, extra: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(tmp_path, features(**extra))


def test_typos_in_names_of_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="val_labels requires val_images, which is missing"):
        load(tmp_path, images(val_labels=np.arange(3)))
    with pytest.raises(DataError, match=r"val_image is not a recognised name; did you mean 'val_images'\?"):
        load(tmp_path, images(val_image=np.zeros((3, 3, 6, 6), np.uint8)))


def test_classes_without_test_images_are_noted(tmp_path: Path) -> None:
    note = "1 class has no test image and is not part of any test accuracy: 2"
    for arrays in (features, images):
        assert load(tmp_path, arrays(test_labels=np.arange(9) % 2), val_fraction=0).notes == (note,)
        assert load(tmp_path, arrays(), val_fraction=0).notes == ()


def test_other_keys_are_ignored(tmp_path: Path) -> None:
    names = {
        "class_names": np.arange(3),
        "train_paths": np.arange(20),
        "train_features_raw": HALF,
        "epoch": np.array(3),
        "all_labels": np.arange(20),
        "all_features": HALF,
        "raw_labels": np.arange(20),
        "features": HALF,
        "fc_weight": HEAD,
    }
    both = {"train_images": np.zeros((20, 6, 6), np.uint8), "val_indices": np.arange(3)}
    assert load(tmp_path, features(**names, **both)).train.digest() == load(tmp_path, features()).train.digest()
    assert len(load(tmp_path, images(weight=HEAD, bias=HEAD[:, 0], weights=HEAD)).test) == 9


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, **features())
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-40])
    text = tmp_path / "mine.csv"
    text.write_text("1,2\n")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"\x08\x00")
    for file, match in ((cut, "cut.npz cannot be read"), (text, "must end in .npz"), (torn, "torn.* cannot be read")):
        with pytest.raises(DataError, match=match):
            DATASETS.parse({"kind": "arrays", "path": str(file)}).load()
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        DATASETS.parse({"kind": "arrays", "path": str(tmp_path / "none.npz")}).load()


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "mine.npz", **features())
    assert len(DATASETS.parse({"kind": "arrays", "path": "~/mine.npz"}).load().test) == 9
