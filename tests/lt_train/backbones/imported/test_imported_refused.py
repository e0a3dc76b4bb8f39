"""What does not fit of models of others is refused, with what is wrong and what to do."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from support.imported import CLASSES, RESNET, load, make_bank, save_theirs, theirs
from support.their_models import Half, Heads, Ride, Tiny

from lt_train.backbones.base import BACKBONES
from lt_train.core.errors import CheckpointError, SpecError, UserError
from lt_train.core.registry import ALLOWED_VARIABLE
from lt_train.datasets.base import DatasetSpec
from lt_train.pretrain.base import RECIPES
from lt_train.pretrain.train import train_backbone


@pytest.mark.parametrize(
    ("layer", "fields", "match"),
    [
        (
            "bilinear",
            {"classifier": "classifier"},
            r"classifier of .*:Tiny is a Bilinear and not linear; the head starts from a layer with a weight of K x D, "
            r"whose logits are W f \+ b or s cos\(W_k, f\)\. Name one, or set use_head: false .*; linear layers at its "
            "end, of 1: hidden",
        ),
        ("bilinear", {}, "must be named for .*:Tiny: .*no linear layer makes it; linear layers at its end, of 1"),
        ("scaled", {}, r"is a Scaled whose output is neither W f \+ b nor s cos\(W_k, f\) \(to 0\.0001 of the l"),
        ("squashed", {}, r"is a Squashed whose output is neither W f \+ b nor s cos\(.*: it is not linear\. Set use"),
        ("asking", {}, r"is a Asking that does not make logits of features alone \(TypeError\)\. Set use_head: false"),
    ],
)
def test_layers_that_are_not_linear_are_refused_and_their_features_may_be_taken(
    tmp_path: Path, allowed: str, layer: str, fields: dict[str, Any], match: str
) -> None:
    save_theirs(Tiny(layer), tmp_path)
    with pytest.raises(UserError, match=f"^classifier: .*{match}"):
        theirs(tmp_path, "Tiny", {"layer": layer}, **fields)
    bank = theirs(tmp_path, "Tiny", {"layer": layer}, classifier="classifier", use_head=False)
    assert (bank.head, bank.feature_dim) == (None, 6)


def test_a_wrong_classifier_is_refused_with_the_nearest_names(tmp_path: Path, allowed: str) -> None:
    save_theirs(Tiny(), tmp_path)
    with pytest.raises(
        UserError,
        match=r"classifier: .*:Tiny has no layer 'clasifier'; linear layers with the nearest names, of 2: classifier$",
    ):
        theirs(tmp_path, "Tiny", classifier="clasifier")
    with pytest.raises(UserError, match="it has 6 classes where the dataset has 5"):
        theirs(tmp_path, "Tiny", classifier="hidden")


@pytest.mark.parametrize(
    ("arguments", "names", "match"),
    [
        ({}, ["linears.0", "linears.7"], r":Ride has no layer 'linears\.7'; .* nearest names, of 3: linears\.2"),
        ({}, ["linears.0", "branches.1"], r"branches\.1 of .*:Ride is a Sequential and not linear; .*, of 3: lin"),
        (
            {},
            ["linears.0", "linears.1"],
            r"what .*:Ride returns is not the mean of the logits of linears\.0, linears\.1, nor that times a number "
            r"\(to 0\.0001 of the largest\)\. Name all layers that it averages, or one; or set use_head: false",
        ),
        ({"returns": "first"}, ["linears.0", "linears.1", "linears.2"], "returns is not the mean of the logits of"),
        ({"returns": "softmax"}, ["linears.0", "linears.1", "linears.2"], "returns is not the mean of the logits of"),
        (
            {"classes": [5, 5, 6], "returns": "list"},
            ["linears.0", "linears.2"],
            r"layers of .*:Ride must be for as many classes as one another, got 5 for linears\.0, 6 for linears\.2",
        ),
        (
            {"returns": "softmax"},
            None,
            "must be named for .*: .*no linear layer makes it; linear layers at its end, of 3",
        ),
        (
            {"returns": "list"},
            None,
            r"must be named for .*: .*3 linear layers make it: linears\.0, linears\.1, linears\.2\. Name one, or a "
            "list of those to average; linear layers at its end, of 3",
        ),
    ],
)
def test_several_classifiers_of_which_one_is_wrong_are_refused(
    tmp_path: Path, allowed: str, arguments: dict[str, Any], names: list[str] | None, match: str
) -> None:
    save_theirs(Ride(**arguments), tmp_path)
    with pytest.raises(UserError, match=f"^classifier: .*{match}"):
        theirs(tmp_path, "Ride", arguments, classifier=names)


def test_heads_for_several_things_ask_for_a_name(tmp_path: Path, allowed: str) -> None:
    save_theirs(Heads(), tmp_path)
    with pytest.raises(
        UserError, match=r"2 linear layers make it: coarse, fine\. Name one, or a list of those to average"
    ):
        theirs(tmp_path, "Heads")
    assert theirs(tmp_path, "Heads", classifier="fine").notes[-1].endswith("the head starts from fine [5, 192]")
    with pytest.raises(UserError, match="must be for as many classes as one another, got 2 for coarse, 5 for fine"):
        theirs(tmp_path, "Heads", classifier=["coarse", "fine"])


def test_a_layer_that_does_not_run_once_is_refused(tmp_path: Path, allowed: str) -> None:
    arguments = {"layer": "unused"}
    save_theirs(Tiny(**arguments), tmp_path)
    with pytest.raises(UserError, match="classifier: spare must run once a forward pass, and runs 0 times"):
        theirs(tmp_path, "Tiny", arguments, classifier="spare")


def test_classes_of_another_dataset_are_refused(tmp_path: Path, allowed: str) -> None:
    save_theirs(Tiny(classes=9), tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"classifier classifier of .*:Tiny is for another dataset: it has 9 classes where the dataset has 5; "
        "give arguments and checkpoint of a model for these classes, or use_head: false",
    ):
        theirs(tmp_path, "Tiny", {"classes": 9})


def test_names_that_do_not_match_are_told_all_at_once(tmp_path: Path, allowed: str) -> None:
    state = Tiny().state_dict()
    state["pool.weight"] = state.pop("hidden.weight")
    state["classifier.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "theirs.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint .*theirs\.safetensors for .*:Tiny: its tensors are not the model's: 4 of the model's 6 "
        r"tensors match; missing: hidden\.weight; left over: pool\.weight; of another shape: classifier\.bias \[7\] "
        r"where the model has \[5\]; give the arguments it was trained with, take a prefix off with strip_prefix",
    ):
        theirs(tmp_path, "Tiny")


def test_a_pickled_module_is_refused_with_how_to_convert_it(dataset: DatasetSpec, tmp_path: Path) -> None:
    file = tmp_path / "whole.pth"
    torch.save(torchvision.models.resnet18(num_classes=CLASSES), file)
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
        BACKBONES.parse(RESNET | {"arguments": {}} | fields).build(3)


def test_timms_own_ways_to_read_weights_are_refused() -> None:
    for name in ("pretrained", "checkpoint_path", "pretrained_cfg_overlay", "cache_dir"):
        with pytest.raises(UserError, match=f"arguments of timm:resnet18 must not say where weights are, got {name}"):
            BACKBONES.parse({"kind": "imported", "factory": "timm:resnet18", "arguments": {name: "x"}}).build(3)


def test_a_missing_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="needs timm, which is not installed; `pip install timm` brings it"):
        BACKBONES.parse({"kind": "imported", "factory": "timm:resnet18"}).build(3)


def test_a_package_is_called_where_it_is_allowed_alone(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(function: str) -> None:
        BACKBONES.parse({"kind": "imported", "factory": f"{allowed}.their_models:{function}"}).build(3)

    monkeypatch.setenv(ALLOWED_VARIABLE, f"another, {allowed}")
    build("Tiny")
    with pytest.raises(UserError, match="their_models must define a function or class system, and does not"):
        build("system")  # imported there, not defined there
    with pytest.raises(UserError, match=r"their_models:no_model must make a torch\.nn\.Module, got int"):
        build("no_model")
    monkeypatch.delenv("LT_TINY_RAN")
    monkeypatch.setenv(ALLOWED_VARIABLE, allowed[:-1])
    with pytest.raises(UserError, match=f"`--allow-import {allowed}` lets the code of that package run"):
        build("no_model")
    monkeypatch.delenv(ALLOWED_VARIABLE)
    with pytest.raises(UserError, match="must name torchvision, timm or a package that --allow-import names"):
        build("no_model")
    assert "LT_TINY_RAN" not in os.environ


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"factory": "resnet18"}, r"imported\.factory: must be what makes the model: torchvision:NAME"),
        ({"factory": "torchvision:resnet18; import os"}, r"imported\.factory: must be what makes the model"),
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


def test_images_of_a_size_that_the_model_does_not_take_are_refused(small: DatasetSpec, tmp_path: Path) -> None:
    fields = {"factory": "torchvision:vit_b_16", "arguments": {"image_size": 64, "num_classes": CLASSES}}
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="vit_b_16 cannot be run on images of 3 x 8 x 8: AssertionError: Wrong image"):
        make_bank(small, tmp_path, checkpoint=str(tmp_path / "x.safetensors"), **fields)


def test_a_model_that_runs_in_half_precision_alone_is_refused(tmp_path: Path, allowed: str) -> None:
    save_theirs(Half(), tmp_path)
    with pytest.raises(UserError, match=r":Half cannot be run on images of 3 x 8 x 8: RuntimeError: .*type"):
        theirs(tmp_path, "Half", {"fixed": True})


def test_images_that_the_model_does_not_take_are_refused_before_training(small: DatasetSpec, tmp_path: Path) -> None:
    fields = {"factory": "torchvision:vit_b_16", "arguments": {"image_size": 64}, "classifier": "heads.head"}
    with pytest.raises(UserError, match="backbone imported cannot be run on images of 3 x 8 x 8: AssertionError"):
        train_backbone(load(small), BACKBONES.parse(RESNET | fields), RECIPES.parse({"kind": "ce"}), tmp_path / "out")
