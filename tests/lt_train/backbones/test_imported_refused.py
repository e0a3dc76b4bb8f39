"""Imported models that do not fit are refused, with the reason and a remedy."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from support.external_models import Half, Heads, Ride, Tiny
from support.imported import CLASSES, RESNET, external_bank, load, make_bank, save_external

from lt_train.backbones.base import BACKBONES
from lt_train.core.errors import CheckpointError, SpecError, UserError
from lt_train.core.plugins import ALLOWED_VARIABLE
from lt_train.datasets.base import DatasetSpec
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone


@pytest.mark.parametrize(
    ("layer", "fields", "match"),
    [
        (
            "bilinear",
            {"classifier": "classifier"},
            r"classifier of .*:Tiny must be a linear layer .* got Bilinear\. .*use_head: false .* 1 linear layers: h",
        ),
        ("bilinear", {}, "must be given for .*:Tiny, because no linear layer produces its output; .* 1 linear layers"),
        ("scaled", {}, r"\(Scaled\) must be linear: .*0\.0001 .*use_head: false"),
        ("squashed", {}, r"\(Squashed\) must be linear: .*use_head: false"),
        ("asking", {}, r"\(Asking\) must compute logits from features alone, got TypeError\. Set use_head: false"),
    ],
)
def test_layers_that_are_not_linear_are_refused_unless_only_their_features_are_used(
    tmp_path: Path, allowed: str, layer: str, fields: dict[str, Any], match: str
) -> None:
    save_external(Tiny(layer), tmp_path)
    with pytest.raises(UserError, match=f"^classifier: .*{match}"):
        external_bank(tmp_path, "Tiny", {"layer": layer}, **fields)
    bank = external_bank(tmp_path, "Tiny", {"layer": layer}, classifier="classifier", use_head=False)
    assert (bank.head, bank.feature_dim) == (None, 6)


def test_a_wrong_classifier_is_refused_with_similar_names(tmp_path: Path, allowed: str) -> None:
    save_external(Tiny(), tmp_path)
    with pytest.raises(
        UserError,
        match=r"classifier: .*:Tiny has no layer 'clasifier'; similar of its 2 linear layers: classifier$",
    ):
        external_bank(tmp_path, "Tiny", classifier="clasifier")
    with pytest.raises(UserError, match=r"6 classes .* 5"):
        external_bank(tmp_path, "Tiny", classifier="hidden")


@pytest.mark.parametrize(
    ("arguments", "names", "match"),
    [
        ({}, ["linears.0", "linears.7"], r":Ride has no layer 'linears\.7'; similar of its 3 .*: linears\.2"),
        (
            {},
            ["linears.0", "branches.1"],
            r"branches\.1 of .*:Ride must be a linear layer .*got Sequential\. .* 3 .*: lin",
        ),
        (
            {},
            ["linears.0", "linears.1"],
            r"of .*:Ride is not a multiple of the mean of the logits of linears\.0, linears\.1 .*use_head: false",
        ),
        (
            {"returns": "first"},
            ["linears.0", "linears.1", "linears.2"],
            "is not a multiple of the mean of the logits of",
        ),
        (
            {"returns": "softmax"},
            ["linears.0", "linears.1", "linears.2"],
            "is not a multiple of the mean of the logits of",
        ),
        (
            {"classes": [5, 5, 6], "returns": "list"},
            ["linears.0", "linears.2"],
            r"layers of .*:Ride must have the same number of classes, got 5 for linears\.0, 6 for linears\.2",
        ),
        (
            {"returns": "softmax"},
            None,
            "must be given for .*, because no linear layer produces its output; last of its 3",
        ),
        (
            {"returns": "list"},
            None,
            r"must be given for .*, because 3 linear layers produce its output: linears\.0, linears\.1, linears\.2\.",
        ),
    ],
)
def test_several_classifiers_that_do_not_fit_are_refused(
    tmp_path: Path, allowed: str, arguments: dict[str, Any], names: list[str] | None, match: str
) -> None:
    save_external(Ride(**arguments), tmp_path)
    with pytest.raises(UserError, match=f"^classifier: .*{match}"):
        external_bank(tmp_path, "Ride", arguments, classifier=names)


def test_several_outputs_need_a_named_classifier(tmp_path: Path, allowed: str) -> None:
    save_external(Heads(), tmp_path)
    with pytest.raises(UserError, match="2 linear layers produce its output: coarse, fine"):
        external_bank(tmp_path, "Heads")
    assert external_bank(tmp_path, "Heads", classifier="fine").notes[-1].endswith("the head starts from fine [5, 192]")
    with pytest.raises(UserError, match="must have the same number of classes, got 2 for coarse, 5 for fine"):
        external_bank(tmp_path, "Heads", classifier=["coarse", "fine"])


def test_a_layer_that_does_not_run_once_is_refused(tmp_path: Path, allowed: str) -> None:
    arguments = {"layer": "unused"}
    save_external(Tiny(**arguments), tmp_path)
    with pytest.raises(UserError, match="classifier: spare must run once per forward pass, got 0 times"):
        external_bank(tmp_path, "Tiny", arguments, classifier="spare")


def test_classes_of_another_dataset_are_refused(tmp_path: Path, allowed: str) -> None:
    save_external(Tiny(classes=9), tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"classifier classifier of .*:Tiny .* 9 classes .* 5; give arguments and checkpoint .*use_head: false",
    ):
        external_bank(tmp_path, "Tiny", {"classes": 9})


def test_all_names_that_do_not_match_are_listed(tmp_path: Path, allowed: str) -> None:
    state = Tiny().state_dict()
    state["pool.weight"] = state.pop("hidden.weight")
    state["classifier.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "external.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint .*external\.safetensors for .*:Tiny: its tensors do not match the model's: 4 of the model's "
        r"6 tensors match; missing: hidden\.weight; left over: pool\.weight; with .* shape: classifier\.bias \[7\] "
        r"where the model has \[5\]; .*strip_prefix",
    ):
        external_bank(tmp_path, "Tiny")


def test_a_pickled_module_is_refused_with_how_to_convert_it(dataset: DatasetSpec, tmp_path: Path) -> None:
    file = tmp_path / "whole.pth"
    torch.save(torchvision.models.resnet18(num_classes=CLASSES), file)
    with pytest.raises(
        CheckpointError,
        match=rf"checkpoint {file} contains pickled objects .* not read.*convert it once: "
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
    with pytest.raises(CheckpointError, match="contains pickled objects"):
        make_bank(dataset, tmp_path, checkpoint=str(tmp_path / "evil.pth"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (b"", "cannot be read"),
        (b"hello, this is not a checkpoint", "cannot be read"),
        ({"epoch": 3, "weights": 4}, "must contain named tensors, .* got the keys epoch, weights"),
        (torch.zeros(3), "must contain named tensors, .* got a Tensor"),
        (None, "does not exist; correct the path"),
    ],
)
def test_a_file_without_weights_is_refused(dataset: DatasetSpec, tmp_path: Path, contents: object, match: str) -> None:
    file = tmp_path / "external.pth"
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
        ({"arguments": {"weights": "DEFAULT"}}, "must not include weights"),
        ({"arguments": {"size": 3}}, r"cannot be created with arguments \{'size': 3\}: TypeError: .*'size'"),
    ],
)
def test_factories_and_arguments_that_a_sweep_file_must_not_use_are_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        BACKBONES.parse(RESNET | {"arguments": {}} | fields).build(3)


def test_timms_arguments_for_reading_weights_are_refused() -> None:
    for name in ("pretrained", "checkpoint_path", "pretrained_cfg_overlay", "cache_dir"):
        with pytest.raises(UserError, match=f"arguments of timm:resnet18 must not include {name}"):
            BACKBONES.parse({"kind": "imported", "factory": "timm:resnet18", "arguments": {name: "x"}}).build(3)


def test_a_missing_timm_is_an_error_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm, .*`pip install timm`"):
        BACKBONES.parse({"kind": "imported", "factory": "timm:resnet18"}).build(3)


def test_a_package_is_called_only_if_it_is_allowed(
    allowed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def build(function: str) -> None:
        BACKBONES.parse({"kind": "imported", "factory": f"{allowed}.external_models:{function}"}).build(3)

    monkeypatch.setenv(ALLOWED_VARIABLE, f"json, {allowed}")
    build("Tiny")
    with pytest.raises(UserError, match="external_models must define a function or class system, but does not"):
        build("system")  # imported there, not defined there
    with pytest.raises(UserError, match=r"external_models:no_model must return a torch\.nn\.Module, got int"):
        build("no_model")
    monkeypatch.delenv("LT_TINY_RAN")
    (tmp_path / f"{allowed[:-1]}.py").touch()  # a module whose name is the start of the package's
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(ALLOWED_VARIABLE, allowed[:-1])
    with pytest.raises(UserError, match=f"`--allow-import {allowed}` allows the code of that package"):
        build("no_model")
    monkeypatch.delenv(ALLOWED_VARIABLE)
    with pytest.raises(UserError, match="must name torchvision, timm or a package that --allow-import names"):
        build("no_model")
    assert "LT_TINY_RAN" not in os.environ


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"factory": "resnet18"}, r"imported\.factory: .*torchvision:NAME"),
        ({"factory": "torchvision:resnet18; import os"}, r"imported\.factory: .*torchvision:NAME"),
        ({"std": [0.2]}, "std must have as many numbers as mean, 3, got 1"),
        ({"std": [0.2, 0.0, 0.2]}, "std must be above 0 in every channel, got 0"),
        ({"classifier": ["fc", "aux", "fc"]}, r"imported\.classifier: must name each layer once, got 'fc' 2 times"),
        ({"classifier": []}, r"^imported\.classifier: must have at least 1 entry, got \[\]$"),
        ({"classifier": 3}, r"^imported\.classifier: must be text or a list, got 3$"),
        ({"classifier": ["fc", 3]}, r"^imported\.classifier\[1\]: must be text, got 3$"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        BACKBONES.parse(RESNET | fields)


def test_images_of_an_unsupported_size_are_refused(small: DatasetSpec, tmp_path: Path) -> None:
    fields = {"factory": "torchvision:vit_b_16", "arguments": {"image_size": 64, "num_classes": CLASSES}}
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="vit_b_16 cannot be run on images of 3 x 8 x 8: AssertionError: Wrong image"):
        make_bank(small, tmp_path, checkpoint=str(tmp_path / "x.safetensors"), **fields)


def test_a_model_that_needs_half_precision_is_refused(tmp_path: Path, allowed: str) -> None:
    save_external(Half(), tmp_path)
    with pytest.raises(UserError, match=r":Half cannot be run on images of 3 x 8 x 8: RuntimeError: .*type"):
        external_bank(tmp_path, "Half", {"fixed": True})


def test_unsupported_images_are_refused_before_training(small: DatasetSpec, tmp_path: Path) -> None:
    fields = {"factory": "torchvision:vit_b_16", "arguments": {"image_size": 64}, "classifier": "heads.head"}
    with pytest.raises(UserError, match="backbone imported cannot be run on images of 3 x 8 x 8: AssertionError"):
        train_backbone(load(small), BACKBONES.parse(RESNET | fields), RECIPES.parse({"kind": "ce"}), tmp_path / "out")
