"""A re-trained head in the classifier layers of a model: the model itself then returns the head's logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import external_models
from support.external_models import Tiny
from support.imported import CLASSES, load, own_output, save_external, scrambled, write_arrays
from torch import Tensor, nn

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_frozen, load_whole, save_checkpoint
from lt_train.backbones.layers import Classifier
from lt_train.core.errors import UserError
from lt_train.datasets._images.transform import normalise
from lt_train.datasets.base import DatasetSpec

IMAGES = (3, 8, 8)


def backbone(folder: Path, name: str, arguments: dict[str, Any], **fields: Any) -> Any:
    document = {"kind": "imported", "factory": f"support.external_models:{name}", "arguments": arguments}
    return BACKBONES.parse(document | {"checkpoint": str(folder / "external.safetensors")} | fields)


def retrained(dim: int, classes: int = CLASSES, bias: bool = True) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    return torch.randn(classes, dim, generator=stream), bias * torch.randn(classes, generator=stream)


def head_logits(spec: Any, head: tuple[Tensor, Tensor], dataset: DatasetSpec) -> Tensor:
    """By the way of a sweep: features of the frozen network, in the batch and memory layout of `own_output`."""
    images = normalise(load(dataset).test.inputs, spec.mean, spec.std).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        network = load_frozen(spec, IMAGES).network.to(memory_format=torch.channels_last)
        return nn.functional.linear(network(images), *head)


@pytest.mark.parametrize(
    ("name", "arguments", "dim", "bias"),
    [
        ("Tiny", {}, 6, True),
        ("Tiny", {"hidden": CLASSES}, CLASSES, True),
        ("Tiny", {"times": 2.5}, 6, True),
        ("Tiny", {"layer": "unbiased"}, 6, False),
        ("Tiny", {"layer": "lookalike"}, 6, True),
        ("Tiny", {"layer": "lookalike", "hidden": CLASSES}, CLASSES, True),
        ("Tiny", {"layer": "casting"}, 6, True),
        ("Tiny", {"layer": "weight_norm"}, 6, True),
        ("Ride", {}, 18, True),
        ("Ride", {"dims": [6, 4, 9], "returns": "sum"}, 19, True),
        ("Ride", {"layers": ["linear", "unbiased", "linear"]}, 18, True),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_model_returns_the_logits_of_the_head(
    small: DatasetSpec, tmp_path: Path, allowed: str, name: str, arguments: dict[str, Any], dim: int, bias: bool
) -> None:
    save_external(getattr(external_models, name)(**arguments), tmp_path)
    spec, head = backbone(tmp_path, name, arguments), retrained(dim, bias=bias)
    whole = load_whole(spec, IMAGES, head)
    model = getattr(external_models, name)(**arguments)
    model.load_state_dict(dict(whole.tensors), strict=True)
    expected, found = head_logits(spec, head, small), own_output(model, small)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    if (name, arguments) == ("Tiny", {}):
        assert torch.equal(found, expected), "one linear layer is equal to the bit"


def test_a_classifier_of_other_classes_is_replaced(small: DatasetSpec, tmp_path: Path, allowed: str) -> None:
    save_external(Tiny(classes=9), tmp_path)
    spec, head = backbone(tmp_path, "Tiny", {"classes": 9}, use_head=False), retrained(6)
    model = Tiny(classes=CLASSES)
    model.load_state_dict(dict(load_whole(spec, IMAGES, head).tensors), strict=True)
    assert torch.equal(own_output(model, small), head_logits(spec, head, small))


@pytest.mark.parametrize(
    ("name", "arguments", "fields", "dim", "problem"),
    [
        ("Tiny", {"layer": "cosine"}, {}, 6, "classifier of support.external_models:Tiny computes cosines"),
        ("Tiny", {"layer": "unbiased"}, {}, 6, "has no bias, but the head has one"),
        ("Tiny", {"layer": "old_weight_norm"}, {}, 6, "computes its weights from other parameters"),
        ("Tiny", {"layer": "scaled"}, {"use_head": False}, 6, r"must compute W f \+ b to hold a linear head"),
    ],
)
def test_layers_that_cannot_hold_the_head_are_refused(
    tmp_path: Path, allowed: str, name: str, arguments: dict[str, Any], fields: dict[str, Any], dim: int, problem: str
) -> None:
    save_external(getattr(external_models, name)(**arguments), tmp_path)
    with pytest.raises(UserError, match=problem):
        load_whole(backbone(tmp_path, name, arguments, **fields), IMAGES, retrained(dim))


@pytest.mark.parametrize("cosine_scale", [None, 30.0])
def test_a_model_of_stage_1_has_its_own_names(
    small: DatasetSpec, tmp_path: Path, allowed: str, cosine_scale: float | None
) -> None:
    """Its classifier was left out in stage 1; with LDAM's cosines, features are normalised outside the model."""
    spec = backbone(tmp_path, "Tiny", {}, checkpoint=None)
    classifier = scrambled(Classifier(spec, 3, CLASSES, cosine_scale))
    save_checkpoint(tmp_path / "own.safetensors", classifier, {"mean": list(spec.mean), "std": list(spec.std)})
    source, head = spec.model_copy(update={"checkpoint": str(tmp_path / "own.safetensors")}), retrained(6)
    if cosine_scale is not None:
        with pytest.raises(UserError, match="computes cosines"):
            load_whole(source, IMAGES, head)
        return
    model = Tiny()
    model.load_state_dict(dict(load_whole(source, IMAGES, head).tensors), strict=True)
    assert torch.equal(own_output(model, small), head_logits(source, head, small))


def test_other_backbones_are_a_classifier_of_this_package(tmp_path: Path) -> None:
    spec, dataset = BACKBONES.parse({"kind": "small_cnn", "width": 4}), write_arrays(tmp_path / "images.npz", size=8)
    about = {"mean": [0.5] * 3, "std": [0.5] * 3}
    save_checkpoint(tmp_path / "own.safetensors", scrambled(Classifier(spec, 3, 9)), about)
    frozen = load_frozen(tmp_path / "own.safetensors", IMAGES)
    head = retrained(frozen.feature_dim)
    whole = load_whole(tmp_path / "own.safetensors", IMAGES, head)
    created: dict[str, Any] = {}
    exec(whole.code, created)
    created["model"].load_state_dict(dict(whole.tensors), strict=True)
    images = normalise(load(dataset).test.inputs, *about.values())
    with torch.inference_mode():
        expected = nn.functional.linear(frozen.network.eval()(images), *head)
        assert torch.equal(created["model"].eval()(images), expected)
