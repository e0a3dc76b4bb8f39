"""Models of others: their own logits come out of bank and warm head, to the bit, and what does not fit is refused."""

import copy
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from lt_train.backbones.base import parse_backbone
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.datasets.base import DatasetSpec, PictureData, parse_dataset
from lt_train.datasets.transform import normalise
from lt_train.errors import CheckpointError, SpecError, UserError
from lt_train.features.bank import FeatureBank, open_bank
from lt_train.features.extract import FeaturesSpec, build_bank
from lt_train.registry import ALLOWED_VARIABLE
from lt_train.stage1.base import parse_recipe
from lt_train.stage1.train import train_backbone

CLASSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET = {"kind": "imported", "factory": "torchvision:resnet18", "arguments": {"num_classes": CLASSES}}


def write_pictures(path: Path, channels: int = 3, size: int = 32) -> DatasetSpec:
    rng = np.random.default_rng(0)
    labels = np.arange(2 * CLASSES) % CLASSES
    images = rng.integers(0, 256, (len(labels), channels, size, size), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=images[::-1], test_labels=labels[::-1])
    return parse_dataset({"kind": "arrays", "path": str(path), "val_fraction": 0})


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetSpec:
    return write_pictures(tmp_path / "pictures.npz")


def pictures_of(dataset: DatasetSpec) -> Tensor:
    data = dataset.load()
    assert isinstance(data, PictureData)
    return data.test.inputs


def own_logits(model: nn.Module, dataset: DatasetSpec) -> Tensor:
    """What the model itself says of the test pictures, in the layout and the batch that features are taken in."""
    inputs = normalise(pictures_of(dataset), MEAN, STD).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        frozen = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        logits: Tensor = frozen(inputs)
    return logits


def warm_logits(bank: FeatureBank) -> Tensor:
    assert bank.head is not None
    return nn.functional.linear(bank.test.features[0], *bank.head)


def make_bank(dataset: DatasetSpec, store: Path, **fields: Any) -> FeatureBank:
    backbone = parse_backbone(RESNET | fields)
    return open_bank(build_bank(dataset, backbone, FeaturesSpec(test_flip=False), store))


def scrambled(model: nn.Module) -> nn.Module:
    """The model with no weight left at zero and batch norm statistics of their own, as after training."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if name.endswith("running_var") else 0.02 * noise)
    return model


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
def test_bank_and_warm_head_give_the_models_own_logits(
    dataset: DatasetSpec,
    tmp_path: Path,
    make: Callable[..., nn.Module],
    package: str,
    name: str,
    arguments: dict[str, Any],
    classifier: str,
) -> None:
    model = make(name, **arguments)
    file = tmp_path / "theirs.safetensors"
    save_file(model.state_dict(), file)
    arguments = {"num_classes": CLASSES, **arguments}
    bank = make_bank(dataset, tmp_path, factory=f"{package}:{name}", arguments=arguments, checkpoint=str(file))
    file.unlink()  # hundreds of megabytes
    own = own_logits(model, dataset)
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
    ids=["DataParallel", "DataParallel of a wrapper, beside other things", "torch.compile"],
)
def test_a_file_of_torch_save_with_prefixed_names_is_read(
    dataset: DatasetSpec, tmp_path: Path, prefix: str, wrap: str | None
) -> None:
    model = torchvision_model("resnet18")
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({wrap: state, "epoch": 90, "best": 0.7} if wrap else state, tmp_path / "theirs.pth")
    bank = make_bank(dataset, tmp_path, checkpoint=str(tmp_path / "theirs.pth"))
    assert torch.equal(warm_logits(bank), own_logits(model, dataset))
    assert bank.notes[-1] == (
        f"backbone torchvision:resnet18: 122 of the model's 122 tensors match (less the prefix {prefix}); the head "
        "starts from fc [5, 512]"
    )


def test_a_real_data_parallel_model_is_read(dataset: DatasetSpec, tmp_path: Path) -> None:
    model = torchvision_model("resnet18")
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "theirs.pth")
    bank = make_bank(dataset, tmp_path, checkpoint=str(tmp_path / "theirs.pth"))
    assert torch.equal(warm_logits(bank), own_logits(model, dataset))


def test_a_prefix_of_the_models_own_is_left_alone_and_another_may_be_named(tmp_path: Path, package: str) -> None:
    dataset = write_pictures(tmp_path / "small.npz", size=8)
    model = tiny(tmp_path)
    for prefix, fields in (("", {}), ("net.", {"strip_prefix": "net."})):
        save_file({prefix + name: tensor for name, tensor in model.state_dict().items()}, tmp_path / "t.safetensors")
        file = str(tmp_path / "t.safetensors")
        bank = make_bank(dataset, tmp_path, factory=f"{package}.nets:Tiny", arguments={}, checkpoint=file, **fields)
        assert torch.equal(warm_logits(bank), own_logits(model, dataset))


TINY = """
import os
from os import system
from torch import nn

class Scaled(nn.Linear):
    def forward(self, features):
        return 30 * super().forward(nn.functional.normalize(features))

class Tiny(nn.Module):
    def __init__(self, layer=None, bias=True, classes=5):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden = nn.Linear(4, 6)
        makes = {None: nn.Linear, "scaled": Scaled, "bilinear": nn.Bilinear}[layer]
        self.classifier = makes(6, 6, classes) if layer == "bilinear" else makes(6, classes, bias=bias)
        self.two = layer == "bilinear"

    def forward(self, pictures):
        features = self.hidden(self.backbone(pictures)).relu()
        return {"logits": self.classifier(features, features) if self.two else self.classifier(features)}

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunks = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(192, 5) for _ in range(2))

    def forward(self, pictures):
        return [head(trunk(pictures)) for trunk, head in zip(self.trunks, self.heads)]

def no_model():
    os.environ["LT_TINY_RAN"] = "1"
    return 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of somebody's that may be imported, with a small model."""
    name = f"their_models_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "nets.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOWED_VARIABLE, f"another, {name}")
    return name


def tiny(place: Path, **arguments: Any) -> nn.Module:
    namespace: dict[str, Any] = {"__name__": "a_copy"}
    exec(TINY, namespace)
    model: nn.Module = scrambled(namespace["Tiny"](**arguments))
    save_file(model.state_dict(), place / "tiny.safetensors")

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, pictures: Tensor) -> Tensor:
            logits: Tensor = self.inner(pictures)["logits"]
            return logits

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return model.state_dict()

    return Logits()


def import_tiny(place: Path, package: str, **fields: Any) -> FeatureBank:
    fields = {
        "factory": f"{package}.nets:Tiny",
        "checkpoint": str(place / "tiny.safetensors"),
        "arguments": {},
    } | fields
    return make_bank(write_pictures(place / "small.npz", size=8), place / "banks", **fields)


def test_a_classifier_without_a_bias_starts_with_zeros_and_says_so(tmp_path: Path, package: str) -> None:
    model = tiny(tmp_path, bias=False)
    bank = import_tiny(tmp_path, package, arguments={"bias": False})
    assert bank.head is not None
    assert not bank.head[1].any()
    assert torch.equal(warm_logits(bank), own_logits(model, write_pictures(tmp_path / "small.npz", size=8)))
    assert bank.notes[-1].endswith("the head starts from classifier [5, 6] without a bias, which starts at 0")


def test_grey_pictures_are_shown_to_every_channel(tmp_path: Path, package: str) -> None:
    model = tiny(tmp_path)
    grey = write_pictures(tmp_path / "grey.npz", channels=1, size=8)
    file = str(tmp_path / "tiny.safetensors")
    bank = make_bank(grey, tmp_path / "banks", factory=f"{package}.nets:Tiny", arguments={}, checkpoint=file)
    data = grey.load()
    assert isinstance(data, PictureData)
    rgb = normalise(data.test.inputs.expand(-1, 3, -1, -1), MEAN, STD)
    torch.testing.assert_close(warm_logits(bank), model.eval()(rgb))
    two = write_pictures(tmp_path / "two.npz", channels=2, size=8)
    with pytest.raises(CheckpointError, match="it has 3 input channels where the dataset has 2"):
        make_bank(two, tmp_path / "banks", factory=f"{package}.nets:Tiny", arguments={}, checkpoint=file)


def test_layers_that_are_not_linear_are_refused_and_their_features_may_be_taken(tmp_path: Path, package: str) -> None:
    tiny(tmp_path, layer="scaled")
    with pytest.raises(UserError, match=r"classifier: classifier of .*:Tiny is a Scaled whose output is not W f \+ b"):
        import_tiny(tmp_path, package, arguments={"layer": "scaled"})
    tiny(tmp_path, layer="bilinear")
    named: dict[str, Any] = {"arguments": {"layer": "bilinear"}, "classifier": "classifier"}
    with pytest.raises(
        UserError,
        match=r"classifier of .*:Tiny is a Bilinear and not linear; the head starts from a torch\.nn\.Linear, whose "
        r"logits are W f \+ b\. Name one, or set use_head: false .*; linear layers at its end, of 1: hidden",
    ):
        import_tiny(tmp_path, package, **named)
    bank = import_tiny(tmp_path, package, **named, use_head=False)
    assert bank.head is None
    assert bank.feature_dim == 6
    assert bank.notes[-1].endswith("features are what flows into classifier, whose weights are not used")


def test_a_wrong_classifier_is_refused_with_the_nearest_names(tmp_path: Path, package: str) -> None:
    tiny(tmp_path)
    with pytest.raises(
        UserError,
        match=r"classifier: .*:Tiny has no layer 'clasifier'; linear layers with the nearest names, of 2: classifier$",
    ):
        import_tiny(tmp_path, package, classifier="clasifier")
    with pytest.raises(UserError, match="it has 6 classes where the dataset has 5"):
        import_tiny(tmp_path, package, classifier="hidden")


def test_an_output_that_no_linear_layer_makes_asks_for_a_name(tmp_path: Path, package: str) -> None:
    tiny(tmp_path, layer="bilinear")
    with pytest.raises(
        UserError, match=r"classifier: must be named for .*:Tiny: .*no linear layer makes it; linear layers at its end"
    ):
        import_tiny(tmp_path, package, arguments={"layer": "bilinear"})


def test_classes_of_another_dataset_are_refused_or_left_out(tmp_path: Path, package: str) -> None:
    tiny(tmp_path, classes=9)
    with pytest.raises(
        CheckpointError,
        match=r"classifier classifier of .*:Tiny is for another dataset: it has 9 classes where the dataset has 5; "
        "give arguments and checkpoint of a model for these classes, or use_head: false",
    ):
        import_tiny(tmp_path, package, arguments={"classes": 9})
    whole = import_tiny(tmp_path, package, arguments={"classes": 9}, use_head=False)
    assert whole.head is None
    differs = import_tiny(tmp_path, package, use_head=False)  # the model has 5: its classifier is not used anyway
    assert torch.equal(whole.test.features, differs.test.features)


def test_names_that_do_not_match_are_told_all_at_once_and_may_be_allowed(tmp_path: Path, package: str) -> None:
    state = tiny(tmp_path).state_dict()
    state["pool.weight"] = state.pop("hidden.weight")
    state["classifier.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "tiny.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint .*tiny\.safetensors for .*:Tiny: its tensors are not the model's: 4 of the model's 6 "
        r"tensors match; missing: hidden\.weight; left over: pool\.weight; of another shape: classifier\.bias \[7\] "
        r"where the model has \[5\]; give the arguments it was trained with, take a prefix off with strip_prefix",
    ):
        import_tiny(tmp_path, package)
    state["classifier.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "tiny.safetensors")
    allowed = {"allow_missing": ["hidden.*"], "allow_left_over": ["pool.*"]}
    bank = import_tiny(tmp_path, package, **allowed)
    assert "5 of the model's 6 tensors match; missing: hidden.weight; left over: pool.weight" in bank.notes[-1]
    torch.manual_seed(7)
    again = import_tiny(tmp_path / "..", package, checkpoint=str(tmp_path / "tiny.safetensors"), **allowed)
    assert torch.equal(bank.test.features, again.test.features), "what is missing is drawn from a stream of its own"


def test_a_pickled_module_is_refused_with_how_to_convert_it(dataset: DatasetSpec, tmp_path: Path) -> None:
    file = tmp_path / "whole.pth"
    torch.save(torchvision_model("resnet18"), file)
    with pytest.raises(
        CheckpointError,
        match=rf"checkpoint {file} holds pickled objects .* not read\. Where you trust it, convert it once: "
        r"`saved = torch\.load\(old, weights_only=False\)`, then `torch\.save\(saved\.state_dict\(\), new\)`",
    ):
        make_bank(dataset, tmp_path, checkpoint=str(file))


class RunsCode:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run(
    dataset: DatasetSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": RunsCode()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="holds pickled objects"):
        make_bank(dataset, tmp_path, checkpoint=str(tmp_path / "evil.pth"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (b"", "cannot be read"),
        (b"hello, this is no checkpoint", "cannot be read"),
        ({"epoch": 3, "weights": 4}, "must hold tensors by name, .* got the keys epoch, weights"),
        (torch.zeros(3), "must hold tensors by name, .* got a Tensor"),
        (None, "does not exist; correct the path"),
    ],
)
def test_a_file_without_weights_is_refused(dataset: DatasetSpec, tmp_path: Path, contents: object, match: str) -> None:
    file = tmp_path / "theirs.pth"
    if isinstance(contents, bytes):
        file.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, file)
    with pytest.raises(CheckpointError, match=f"checkpoint {file} {match}"):
        make_bank(dataset, tmp_path, checkpoint=str(file))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"factory": "os:system"}, "must name torchvision, timm or a package that --allow-import names, got os:system"),
        ({"factory": "torchvision.io:read_file"}, "must name torchvision, timm or a package that --allow-import names"),
        ({"factory": "torchvision:_utils"}, "torchvision has no model '_utils'"),
        ({"factory": "torchvision:resnet81"}, r"torchvision has no model 'resnet81'; did you mean 'resnet18'\?"),
        ({"factory": "torchvision:fasterrcnn_resnet50_fpn"}, "torchvision has no model"),
        ({"arguments": {"weights": "DEFAULT"}}, "must not say where weights are, got weights"),
        ({"arguments": {"size": 3}}, r"cannot be made with arguments \{'size': 3\}: TypeError: .*'size'"),
    ],
)
def test_what_a_sweep_file_may_not_call_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_backbone(RESNET | {"arguments": {}} | fields).build(3)


def test_timms_own_ways_to_read_weights_are_refused() -> None:
    for name in ("pretrained", "checkpoint_path", "pretrained_cfg_overlay", "cache_dir"):
        with pytest.raises(UserError, match=f"arguments of timm:resnet18 must not say where weights are, got {name}"):
            parse_backbone({"kind": "imported", "factory": "timm:resnet18", "arguments": {name: "x"}}).build(3)


def test_a_missing_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="needs timm, which is not installed; `pip install timm` brings it"):
        parse_backbone({"kind": "imported", "factory": "timm:resnet18"}).build(3)


def test_a_package_is_called_where_it_is_allowed_alone(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(function: str) -> None:
        parse_backbone({"kind": "imported", "factory": f"{package}.nets:{function}"}).build(3)

    build("Tiny")
    with pytest.raises(UserError, match="nets must define a function or class system, and does not"):
        build("system")  # imported there, not defined there
    with pytest.raises(UserError, match=r"nets:no_model must make a torch\.nn\.Module, got int"):
        build("no_model")
    monkeypatch.delenv("LT_TINY_RAN")
    monkeypatch.setenv(ALLOWED_VARIABLE, package[:-1])
    with pytest.raises(UserError, match=f"`--allow-import {package}` lets the code of that package run"):
        build("no_model")
    monkeypatch.delenv(ALLOWED_VARIABLE)
    with pytest.raises(UserError, match="must name torchvision, timm or a package that --allow-import names"):
        build("no_model")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"factory": "resnet18"}, r"imported\.factory: must be what makes the model: torchvision:NAME"),
        ({"factory": "torchvision:resnet18; import os"}, r"imported\.factory: must be what makes the model"),
        ({"std": [0.2]}, "std must have as many numbers as mean, 3, got 1"),
        ({"std": [0.2, 0.0, 0.2]}, "std must be above 0 in every channel, got 0"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        parse_backbone(RESNET | fields)


def test_pictures_of_a_size_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    fields = {"factory": "torchvision:vit_b_16", "arguments": {"image_size": 64, "num_classes": CLASSES}}
    (tmp_path / "x.safetensors").touch()
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="vit_b_16 cannot be run on pictures of 3 x 8 x 8: AssertionError: Wrong image"):
        make_bank(
            write_pictures(tmp_path / "small.npz", size=8),
            tmp_path,
            checkpoint=str(tmp_path / "x.safetensors"),
            **fields,
        )


def test_pictures_that_the_model_does_not_take_are_refused_before_training(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "small.npz", size=8).load()
    assert isinstance(data, PictureData)
    fields = {"factory": "torchvision:vit_b_16", "arguments": {"image_size": 64}, "classifier": "heads.head"}
    with pytest.raises(UserError, match="backbone imported cannot be run on pictures of 3 x 8 x 8: AssertionError"):
        train_backbone(data, parse_backbone(RESNET | fields), parse_recipe({"kind": "ce"}), tmp_path / "out")


def test_each_expert_of_a_model_with_several_is_read_by_its_name(tmp_path: Path, package: str) -> None:
    dataset = write_pictures(tmp_path / "small.npz", size=8)
    model = importlib.import_module(f"{package}.nets").Experts()
    save_file(scrambled(model).state_dict(), tmp_path / "experts.safetensors")
    fields = {"factory": f"{package}.nets:Experts", "arguments": {}}
    fields |= {"checkpoint": str(tmp_path / "experts.safetensors")}
    with pytest.raises(UserError, match=r"2 linear layers make it: heads\.0, heads\.1; linear layers at its end, of 2"):
        make_bank(dataset, tmp_path, **fields)
    for index in range(2):
        bank = make_bank(dataset, tmp_path, **fields, classifier=f"heads.{index}")
        with torch.inference_mode():
            own = model.eval()(normalise(pictures_of(dataset), MEAN, STD))[index]
        assert torch.equal(warm_logits(bank), own)


def test_without_a_checkpoint_it_is_trained_by_a_recipe_and_then_read_as_ours(tmp_path: Path, package: str) -> None:
    dataset = write_pictures(tmp_path / "small.npz", size=8)
    data = dataset.load()
    assert isinstance(data, PictureData)
    fields = {"kind": "imported", "factory": f"{package}.nets:Tiny"}
    out = tmp_path / "trained.safetensors"
    train_backbone(data, parse_backbone(fields), parse_recipe({"kind": "ce", "epochs": 1}), out)
    path = build_bank(dataset, out, FeaturesSpec(), tmp_path / "banks")
    bank = open_bank(path)
    assert bank.feature_dim == 6
    assert bank.head is not None
    assert build_bank(dataset, parse_backbone(fields | {"checkpoint": str(out)}), FeaturesSpec(), tmp_path / "b") == (
        tmp_path / "b" / path.name
    )
    with pytest.raises(CheckpointError, match="backbone imported has no weights; give it a checkpoint"):
        build_bank(dataset, parse_backbone(fields), FeaturesSpec(), tmp_path / "banks")


def test_a_torchvision_model_without_a_checkpoint_is_trained_for_the_classes_of_the_dataset(tmp_path: Path) -> None:
    data = parse_dataset({"kind": "digits_lt", "n_max": 12, "imbalance_ratio": 2}).load()
    assert isinstance(data, PictureData)
    backbone = parse_backbone({"kind": "imported", "factory": "torchvision:resnet18"})
    out = train_backbone(data, backbone, parse_recipe({"kind": "ce", "epochs": 1}), tmp_path / "out")
    classifier, document = load_checkpoint(out)
    assert document["num_classes"] == 10
    assert classifier.head.weight.shape == (10, 512)
    assert not [name for name in classifier.state_dict() if "fc" in name], "its own classifier, for 1000, is gone"
