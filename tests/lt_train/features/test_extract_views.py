"""Banks of resized crops: what the frozen network says of the views drawn; older banks keep their address."""

from pathlib import Path

import torch
from support.images import write_tree

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core import seeding
from lt_train.datasets._images.transform import View, draw_views, normalise
from lt_train.datasets.base import DATASETS, DatasetSpec, ImageData, ResizedCrop
from lt_train.features.extract import FeaturesSpec, build_bank
from lt_train.features.files import open_bank
from lt_train.pretrain.base import RECIPES
from lt_train.pretrain.train import train_backbone

TREE = {"train": {"auk": 9, "crow": 5, "owl": 3}, "test": {"auk": 2, "crow": 2, "owl": 2}}


def folder(root: Path, augmentation: object) -> DatasetSpec:
    return DATASETS.parse(
        {"kind": "image_folder", "root": str(root), "size": 8, "resize": 9, "augmentation": augmentation}
    )


def images(spec: DatasetSpec) -> ImageData:
    data = spec.load()
    assert isinstance(data, ImageData)
    return data


def test_a_bank_holds_the_resized_crops_drawn_for_each_view(tmp_path: Path) -> None:
    spec = folder(write_tree(tmp_path / "birds", TREE), "resized_crop")
    data = images(spec)
    out = tmp_path / "stage1.safetensors"
    train_backbone(
        data, BACKBONES.parse({"kind": "small_cnn", "width": 4}), RECIPES.parse({"kind": "ce", "epochs": 1}), out
    )
    network = load_checkpoint(out)[0].backbone

    def features(inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(normalise(inputs, data.mean, data.std))

    bank = open_bank(build_bank(spec, out, FeaturesSpec(views=2, seed=3, batch_size=5), tmp_path / "banks"))
    for view in range(2):
        rows = draw_views(len(data.train), ResizedCrop(), seeding.generator("feature view", 3, view))
        expected = features(View(data.train.inputs, ResizedCrop(), rows)[:])
        torch.testing.assert_close(bank.train_features[view], expected)
    assert not torch.allclose(bank.train_features[0], bank.train_features[1])
    assert bank.test.features.shape[0] == 2
    torch.testing.assert_close(bank.test.features[0], features(data.test.inputs[:]))
    as_they_are = open_bank(build_bank(spec, out, FeaturesSpec(), tmp_path / "banks"))
    torch.testing.assert_close(as_they_are.train_features[0], features(data.train.inputs[:]))
    narrower = folder(tmp_path / "birds", {"kind": "resized_crop", "scale": [0.5, 1]})
    other = open_bank(build_bank(narrower, out, FeaturesSpec(views=2, seed=3), tmp_path / "banks"))
    assert other.fingerprint != bank.fingerprint
    assert not torch.allclose(other.train_features, bank.train_features)


def test_training_images_of_a_resized_crop_stay_in_their_files(tmp_path: Path) -> None:
    data = images(folder(write_tree(tmp_path, TREE), "resized_crop"))
    assert not data.train.inputs.in_memory
    assert data.test.inputs.in_memory
    assert images(folder(tmp_path, {"pad": 1, "flip": True})).train.inputs.in_memory


def test_padding_and_cropping_is_addressed_as_before_there_was_another_augmentation() -> None:
    for augmentation in ({"pad": 2, "flip": False}, {"kind": "pad_crop", "pad": 2, "flip": False}):
        assert folder(Path("x"), augmentation).identity()["augmentation"] == {"pad": 2, "flip": False}
    assert DATASETS.parse({"kind": "digits_lt"}).identity()["augmentation"] == {"pad": 1, "flip": False}
