"""Imported models are unchanged: feature bank and starting head reproduce their own logits bit for bit.

Errors are in `test_backbone_refused`, heads of several layers and of cosines in `test_head`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from support.external_models import Half, HalfTrunk, Parametrized, Tiny
from support.imported import (
    CLASSES,
    MEAN,
    external_bank,
    load,
    make_bank,
    own_output,
    save_external,
    scrambled,
    warm_logits,
    write_arrays,
)
from torch import nn

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.backbones.imported.classifier import FeaturesOf
from lt_train.core.errors import CheckpointError
from lt_train.datasets.base import DATASETS, DatasetSpec, ImageData
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.shards import Extractor, Shard, ShardResult
from lt_train.features.spec import FeaturesSpec
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone


def torchvision_model(name: str, **arguments: Any) -> nn.Module:
    return scrambled(torchvision.models.get_model(name, num_classes=CLASSES, **arguments))


def timm_model(name: str, **arguments: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return scrambled(timm.create_model(name, num_classes=CLASSES, **arguments))


@pytest.mark.parametrize(
    ("make", "package", "name", "arguments", "classifier"),
    [
        (torchvision_model, "torchvision", "resnet50", {}, "fc"),
        (torchvision_model, "torchvision", "vit_b_16", {"image_size": 32}, "heads.head"),
        (torchvision_model, "torchvision", "convnext_tiny", {}, "classifier.2"),
        (timm_model, "timm", "resnet18", {}, "fc"),
        (timm_model, "timm", "vit_tiny_patch16_224", {"img_size": 32}, "head"),
    ],
    ids=["torchvision-resnet50", "torchvision-vit_b_16", "torchvision-convnext_tiny", "timm-resnet18", "timm-vit_tiny"],
)
def test_bank_and_starting_head_give_the_models_own_output(
    dataset: DatasetSpec,
    tmp_path: Path,
    make: Callable[..., nn.Module],
    package: str,
    name: str,
    arguments: dict[str, Any],
    classifier: str,
) -> None:
    model = make(name, **arguments)
    file = tmp_path / "external.safetensors"
    save_file(model.state_dict(), file)
    arguments = {"num_classes": CLASSES, **arguments}
    bank = make_bank(dataset, tmp_path, factory=f"{package}:{name}", arguments=arguments, checkpoint=str(file))
    file.unlink()  # hundreds of megabytes
    own = own_output(model, dataset)
    assert torch.equal(warm_logits(bank), own)
    assert len(own.unique(dim=0)) == len(own) > 1
    assert bank.path is not None
    inputs = json.loads((bank.path / "manifest.json").read_text())["inputs"]
    assert inputs["backbone"]["factory"] == f"{package}:{name}"
    assert inputs["backbone"]["arguments"] == arguments
    assert inputs["backbone"]["classifier"] == classifier
    assert len(inputs["checkpoint"]) == 64
    assert inputs["transform"]["mean"] == list(MEAN)


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [("module.", None), ("module.model.", "state_dict"), ("_orig_mod.", "model")],
    ids=["DataParallel", "DataParallel of a wrapper, among other entries", "torch.compile"],
)
def test_a_file_of_torch_save_with_prefixed_names_is_read(
    dataset: DatasetSpec, tmp_path: Path, prefix: str, wrap: str | None
) -> None:
    model = torchvision_model("resnet18")
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({wrap: state, "epoch": 90, "best": 0.7} if wrap else state, tmp_path / "external.pth")
    bank = make_bank(dataset, tmp_path, checkpoint=str(tmp_path / "external.pth"))
    assert torch.equal(warm_logits(bank), own_output(model, dataset))
    assert bank.notes[-1] == (
        f"backbone torchvision:resnet18: 122 of the model's 122 tensors match (without the prefix {prefix}); the head "
        "starts from fc [5, 512]"
    )


def test_a_real_data_parallel_model_is_read(dataset: DatasetSpec, tmp_path: Path) -> None:
    model = torchvision_model("resnet18")
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "external.pth")
    bank = make_bank(dataset, tmp_path, checkpoint=str(tmp_path / "external.pth"))
    assert torch.equal(warm_logits(bank), own_output(model, dataset))


def test_a_prefix_of_the_model_is_kept_and_another_may_be_given(
    small: DatasetSpec, tmp_path: Path, allowed: str
) -> None:
    model = scrambled(Tiny())  # it has a part called backbone
    state = model.state_dict()
    for prefix, fields in (("", {}), ("net.", {"strip_prefix": "net."})):
        save_file({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "external.safetensors")
        assert torch.equal(warm_logits(external_bank(tmp_path, "Tiny", **fields)), own_output(model, small))


def test_a_classifier_without_a_bias_starts_with_zeros_and_a_note(
    small: DatasetSpec, tmp_path: Path, allowed: str
) -> None:
    model = save_external(Tiny("unbiased"), tmp_path)
    bank = external_bank(tmp_path, "Tiny", {"layer": "unbiased"})
    assert bank.head is not None
    assert not bank.head[1].any()
    assert torch.equal(warm_logits(bank), own_output(model, small))
    assert bank.notes[-1].endswith("the head starts from classifier [5, 6] without a bias, which starts at 0")


def test_grey_images_are_repeated_in_every_channel(tmp_path: Path, allowed: str) -> None:
    model = save_external(Tiny(), tmp_path)
    file = str(tmp_path / "external.safetensors")
    fields: dict[str, Any] = {"factory": "support.external_models:Tiny", "arguments": {}, "checkpoint": file}
    grey = write_arrays(tmp_path / "grey.npz", channels=1, size=8)
    bank = make_bank(grey, tmp_path / "banks", **fields)
    torch.testing.assert_close(warm_logits(bank), own_output(model, grey))
    two = write_arrays(tmp_path / "two.npz", channels=2, size=8)
    with pytest.raises(CheckpointError, match=r"3 input channels .* 2"):
        make_bank(two, tmp_path / "banks", **fields)


def test_a_model_in_half_precision_is_converted_to_float32(small: DatasetSpec, tmp_path: Path, allowed: str) -> None:
    save_external(Half(), tmp_path)
    bank = external_bank(tmp_path, "Half")
    whole = Tiny()
    whole.load_state_dict(load_file(tmp_path / "external.safetensors"))
    assert torch.allclose(warm_logits(bank), own_output(whole, small), atol=1e-5)


def test_a_classifier_on_features_in_half_precision_is_recognised(
    small: DatasetSpec, tmp_path: Path, allowed: str
) -> None:
    model = save_external(HalfTrunk("casting"), tmp_path)
    bank = external_bank(tmp_path, "HalfTrunk", {"layer": "casting"})
    assert bank.test.features.dtype == torch.float32
    assert torch.allclose(warm_logits(bank), own_output(model, small), atol=1e-5)


def test_features_can_be_used_without_the_head(tmp_path: Path, allowed: str) -> None:
    save_external(Tiny(classes=9), tmp_path)
    whole = external_bank(tmp_path, "Tiny", {"classes": 9}, use_head=False)
    assert whole.head is None
    assert whole.notes[-1].endswith("features are the inputs of classifier, whose weights are not used")
    differs = external_bank(
        tmp_path, "Tiny", use_head=False
    )  # this model has 5 classes, but its classifier is not used
    assert torch.equal(whole.test.features, differs.test.features)


def test_missing_weights_are_drawn_from_a_named_stream(tmp_path: Path, allowed: str) -> None:
    state = scrambled(Tiny()).state_dict()
    state["pool.weight"] = state.pop("hidden.weight")
    save_file(state, tmp_path / "external.safetensors")
    fields = {"allow_missing": ["hidden.*"], "allow_left_over": ["pool.*"]}
    bank = external_bank(tmp_path, "Tiny", **fields)
    assert "5 of the model's 6 tensors match; missing: hidden.weight; left over: pool.weight" in bank.notes[-1]
    torch.manual_seed(7)
    (tmp_path / "again").mkdir()
    again = external_bank(tmp_path / "again", "Tiny", checkpoint=str(tmp_path / "external.safetensors"), **fields)
    assert torch.equal(bank.test.features, again.test.features)


@pytest.mark.parametrize(
    ("name", "arguments", "dim"),
    [("Tiny", {}, 6), ("Ride", {}, 18), ("Ride", {"dims": [6, 4, 8], "layers": ["normed"] * 3}, 18)],
    ids=["one classifier", "experts", "experts of cosines and of several widths"],
)
def test_without_a_checkpoint_it_is_trained_by_a_recipe(
    small: DatasetSpec, tmp_path: Path, allowed: str, name: str, arguments: dict[str, Any], dim: int
) -> None:
    model = {"kind": "imported", "factory": f"{allowed}.external_models:{name}", "arguments": arguments}
    out = tmp_path / "trained.safetensors"
    train_backbone(load(small), BACKBONES.parse(model), RECIPES.parse({"kind": "ce", "epochs": 1}), out)
    path = build_bank(small, out, FeaturesSpec(), tmp_path / "banks")
    bank = open_bank(path)
    assert bank.feature_dim == dim
    assert bank.head is not None
    assert bank.head[0].shape == (CLASSES, dim)
    assert build_bank(small, BACKBONES.parse(model | {"checkpoint": str(out)}), FeaturesSpec(), tmp_path / "b") == (
        tmp_path / "b" / path.name
    )
    with pytest.raises(CheckpointError, match="backbone imported has no weights; give it a checkpoint"):
        build_bank(small, BACKBONES.parse(model), FeaturesSpec(), tmp_path / "banks")
    other = {"factory": f"{allowed}.external_models:Heads", "checkpoint": str(out)}
    with pytest.raises(CheckpointError, match=f"with another backbone: factory must be .*:Heads, got .*:{name}"):
        build_bank(small, BACKBONES.parse(model | other), FeaturesSpec(), tmp_path / "banks")


def test_a_torchvision_model_without_a_checkpoint_is_trained_for_the_classes_of_the_dataset(tmp_path: Path) -> None:
    data = DATASETS.parse({"kind": "digits_lt", "n_max": 12, "imbalance_ratio": 2}).load()
    assert isinstance(data, ImageData)
    backbone = BACKBONES.parse({"kind": "imported", "factory": "torchvision:resnet18"})
    out = train_backbone(data, backbone, RECIPES.parse({"kind": "ce", "epochs": 1}), tmp_path / "out")
    classifier, document = load_checkpoint(out)
    assert document["num_classes"] == 10
    assert classifier.head.weight.shape == (10, 512)
    assert not [name for name in classifier.state_dict() if "fc" in name], (
        "its own classifier for 1000 classes is removed"
    )


def test_a_parametrized_model_can_be_pickled_and_gives_its_own_output(
    small: DatasetSpec, tmp_path: Path, allowed: str
) -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    model = save_external(Parametrized(), tmp_path)
    file = str(tmp_path / "external.safetensors")
    backbone = BACKBONES.parse(
        {"kind": "imported", "factory": "support.external_models:Parametrized", "checkpoint": file}
    )

    def pickled(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        copy: Extractor = cloudpickle.loads(cloudpickle.dumps(extractor))
        return copy.run(wanted)

    bank = open_bank(build_bank(small, backbone, FeaturesSpec(test_flip=False), tmp_path / "banks", workers=pickled))
    assert torch.equal(warm_logits(bank), own_output(model, small))


def test_an_exported_network_takes_any_number_of_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    network = FeaturesOf(model, ["3"], 3)
    batches = {0: torch.export.Dim.AUTO}
    graph = torch.export.export(network, (torch.zeros(2, 3, 4, 4),), dynamic_shapes=(batches,)).module()
    images = torch.rand(5, 3, 4, 4)
    assert torch.equal(graph(images), network(images))
