"""Extraction: a bank stores the features of the frozen network, once, and only for a matching dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.images import write_tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core import seeding
from lt_train.core.errors import CheckpointError, UserError
from lt_train.datasets._images.transform import View, apply_views, draw_views, normalise
from lt_train.datasets.base import DATASETS, DatasetSpec, ImageData, ResizedCrop
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.spec import FeaturesSpec
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone

DIGITS = DATASETS.parse({"kind": "digits_lt"})


def images(spec: DatasetSpec) -> ImageData:
    data = spec.load()
    assert isinstance(data, ImageData)
    return data


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage1") / "digits.safetensors"
    backbone, recipe = BACKBONES.parse({"kind": "small_cnn", "width": 4}), RECIPES.parse({"kind": "ce", "epochs": 1})
    return train_backbone(images(DIGITS), backbone, recipe, out)


def features(checkpoint: Path, data: ImageData, inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return load_checkpoint(checkpoint)[0].backbone(normalise(inputs, data.mean, data.std))


def test_one_view_is_the_images_without_augmentation(checkpoint: Path, tmp_path: Path) -> None:
    bank = open_bank(build_bank(DIGITS, checkpoint, FeaturesSpec(), tmp_path))
    data = images(DIGITS)
    assert bank.train_features.shape == (1, 369, 16)
    torch.testing.assert_close(bank.train_features[0], features(checkpoint, data, data.train.inputs))
    assert bank.test.features.shape[0] == 1  # digits are not mirrored
    assert bank.val is not None
    assert data.val is not None
    torch.testing.assert_close(bank.val.features[0], features(checkpoint, data, data.val.inputs))
    classifier = load_checkpoint(checkpoint)[0]
    assert bank.head is not None
    assert torch.equal(bank.head[0], classifier.head.weight)
    assert bank.class_counts.tolist() == [110, 78, 56, 40, 29, 20, 14, 10, 7, 5]


def test_views_are_augmented_each_from_its_own_stream(checkpoint: Path, tmp_path: Path) -> None:
    bank = open_bank(build_bank(DIGITS, checkpoint, FeaturesSpec(views=3, seed=5), tmp_path))
    data = images(DIGITS)
    for view in range(3):
        drawn = draw_views(len(data.train), data.augmentation, seeding.generator("feature view", 5, view))
        expected = features(checkpoint, data, apply_views(data.train.inputs, drawn, data.augmentation.pad))
        torch.testing.assert_close(bank.train_features[view], expected)
    assert not torch.allclose(bank.train_features[0], bank.train_features[1])


class LargeTensors(TorchDispatchMode):
    """Keeps every float32 storage of at least `size` bytes alive, so that no address is reused."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                storage = tensor.untyped_storage()
                if storage.nbytes() >= self.size:
                    self.made[storage.data_ptr()] = storage
        return result


def mapped_from(address: int) -> str:
    """The file mapped at an address of this process; empty for anonymous memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= address < stop:
            return " ".join(line.split()[5:])
    raise AssertionError("the address is not mapped")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc/self/maps is specific to Linux")
def test_a_bank_is_never_held_in_memory(checkpoint: Path, tmp_path: Path) -> None:
    """Features go to disk batch by batch; a whole set exists only as a memory-mapped file."""
    data = images(DIGITS)
    with LargeTensors(2 * 140 * 16 * 4) as large:  # the smallest set's
        spec = FeaturesSpec(views=3, test_flip=True, batch_size=4)
        build_bank(DIGITS, checkpoint, spec, tmp_path, data=data)
    files = [mapped_from(storage.data_ptr()) for storage in large.made.values()]
    assert len(files) == 3
    assert all(".safetensors" in file for file in files), files


def test_test_flip_stores_the_mirror(checkpoint: Path, tmp_path: Path) -> None:
    bank = open_bank(build_bank(DIGITS, checkpoint, FeaturesSpec(test_flip=True), tmp_path))
    data = images(DIGITS)
    torch.testing.assert_close(bank.test.features[1], features(checkpoint, data, data.test.inputs.flip(-1)))
    follows = DIGITS.model_copy(update={"augmentation": data.augmentation.model_copy(update={"flip": True})})
    assert open_bank(build_bank(follows, checkpoint, FeaturesSpec(), tmp_path)).test.features.shape[0] == 2


def test_the_same_inputs_are_not_extracted_again(checkpoint: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        path = build_bank(DIGITS, checkpoint, FeaturesSpec(), tmp_path, report=lambda done, *_: calls.append(done))
        made = len(calls)
    assert made == len(calls) > 0
    assert calls.count(calls[-1]) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_everything_that_determines_the_contents_changes_the_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    other = DATASETS.parse({"kind": "digits_lt", "n_max": 100})
    paths = {
        build_bank(DIGITS, checkpoint, FeaturesSpec(), tmp_path),
        build_bank(DIGITS, checkpoint, FeaturesSpec(views=2), tmp_path),
        build_bank(DIGITS, checkpoint, FeaturesSpec(seed=1), tmp_path),
        build_bank(DIGITS, checkpoint, FeaturesSpec(test_flip=True), tmp_path),
        build_bank(other, checkpoint, FeaturesSpec(), tmp_path),
    }
    assert len(paths) == 5
    assert build_bank(DIGITS, checkpoint, FeaturesSpec(batch_size=7), tmp_path) in paths


def write_images(path: Path, num_classes: int, channels: int) -> DatasetSpec:
    rng = np.random.default_rng(0)
    labels = np.arange(5 * num_classes) % num_classes
    images = rng.integers(0, 256, (len(labels), channels, 8, 8), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return DATASETS.parse({"kind": "arrays", "path": str(path)})


@pytest.mark.parametrize(
    ("num_classes", "channels", "match"),
    [(7, 1, "it has 10 classes where the dataset has 7"), (10, 3, "it has 1 input channels where the dataset has 3")],
)
def test_a_checkpoint_of_another_dataset_is_refused(
    checkpoint: Path, tmp_path: Path, num_classes: int, channels: int, match: str
) -> None:
    dataset = write_images(tmp_path / "mine.npz", num_classes, channels)
    with pytest.raises(CheckpointError, match=rf"checkpoint {checkpoint} is for another dataset: {match}"):
        build_bank(dataset, checkpoint, FeaturesSpec(), tmp_path / "banks")
    assert not (tmp_path / "banks").exists()


def test_images_need_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="digits_lt contains images and needs a checkpoint"):
        build_bank(DIGITS, None, FeaturesSpec(), tmp_path)


def test_features_become_a_bank_without_a_backbone(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=(2, 30, 4)).astype(np.float32)
    labels = np.arange(30) % 3
    weight = rng.normal(size=(3, 4)).astype(np.float32)
    arrays = {"train_features": given, "train_labels": labels, "test_features": given, "test_labels": labels}
    np.savez(tmp_path / "mine.npz", weight=weight, **arrays)
    dataset = DATASETS.parse({"kind": "arrays", "path": str(tmp_path / "mine.npz"), "val_fraction": 0})
    path = build_bank(dataset, None, FeaturesSpec(), tmp_path / "banks")
    bank = open_bank(path)
    assert torch.equal(bank.train_features, torch.from_numpy(given))
    assert torch.equal(bank.test.features, torch.from_numpy(given))
    assert bank.val is None
    assert bank.head is not None
    assert torch.equal(bank.head[0], torch.from_numpy(weight))
    assert bank.split_counts.tolist() == [10, 10, 10]

    moved = tmp_path / "elsewhere.npz"
    (tmp_path / "mine.npz").rename(moved)
    again = dataset.model_copy(update={"path": str(moved)})
    assert build_bank(again, None, FeaturesSpec(), tmp_path / "banks") == path
    np.savez(moved, weight=2 * weight, **arrays)
    assert build_bank(again, None, FeaturesSpec(), tmp_path / "banks") != path

    with pytest.raises(UserError, match="arrays has features, so no backbone is used; remove checkpoint"):
        build_bank(again, checkpoint, FeaturesSpec(), tmp_path / "banks")


TREE = {"train": {"auk": 9, "crow": 5, "owl": 3}, "test": {"auk": 2, "crow": 2, "owl": 2}}


def folder(root: Path, augmentation: object) -> DatasetSpec:
    return DATASETS.parse(
        {"kind": "image_folder", "root": str(root), "size": 8, "resize": 9, "augmentation": augmentation}
    )


def test_a_bank_holds_the_resized_crops_drawn_for_each_view(tmp_path: Path) -> None:
    spec = folder(write_tree(tmp_path / "birds", TREE), "resized_crop")
    data = images(spec)
    out = tmp_path / "stage1.safetensors"
    train_backbone(
        data, BACKBONES.parse({"kind": "small_cnn", "width": 4}), RECIPES.parse({"kind": "ce", "epochs": 1}), out
    )
    network = load_checkpoint(out)[0].backbone

    def extracted(inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(normalise(inputs, data.mean, data.std))

    bank = open_bank(build_bank(spec, out, FeaturesSpec(views=2, seed=3, batch_size=5), tmp_path / "banks"))
    for view in range(2):
        rows = draw_views(len(data.train), ResizedCrop(), seeding.generator("feature view", 3, view))
        expected = extracted(View(data.train.inputs, ResizedCrop(), rows)[:])
        torch.testing.assert_close(bank.train_features[view], expected)
    assert not torch.allclose(bank.train_features[0], bank.train_features[1])
    assert bank.test.features.shape[0] == 2
    torch.testing.assert_close(bank.test.features[0], extracted(data.test.inputs[:]))
    unaugmented = open_bank(build_bank(spec, out, FeaturesSpec(), tmp_path / "banks"))
    torch.testing.assert_close(unaugmented.train_features[0], extracted(data.train.inputs[:]))
    narrower = folder(tmp_path / "birds", {"kind": "resized_crop", "scale": [0.5, 1]})
    other = open_bank(build_bank(narrower, out, FeaturesSpec(views=2, seed=3), tmp_path / "banks"))
    assert other.fingerprint != bank.fingerprint
    assert not torch.allclose(other.train_features, bank.train_features)


def test_training_images_of_a_resized_crop_stay_in_their_files(tmp_path: Path) -> None:
    data = images(folder(write_tree(tmp_path, TREE), "resized_crop"))
    assert not data.train.inputs.in_memory
    assert data.test.inputs.in_memory
    assert images(folder(tmp_path, {"pad": 1, "flip": True})).train.inputs.in_memory


def test_pad_crop_is_stored_with_its_kind() -> None:
    stored = {"kind": "pad_crop", "pad": 2, "flip": False}
    for augmentation in ({"pad": 2, "flip": False}, {"kind": "pad_crop", "pad": 2, "flip": False}):
        assert folder(Path("x"), augmentation).identity()["augmentation"] == stored
    assert DATASETS.parse({"kind": "digits_lt"}).identity()["augmentation"] == stored | {"pad": 1}
