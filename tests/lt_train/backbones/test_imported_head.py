"""Several classifier layers, and cosine classifiers, start as one linear head that reproduces the model's output.

A single layer `W f + b` reproduces it bit for bit (`test_backbone`). Here sums are in another order, or rows and
features are normalised first, so logits are compared to 1e-5 of the largest.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.external_models import CLASSIFIERS, Ride, Tiny
from support.imported import CLASSES, external_bank, make_bank, own_output, save_external, scrambled, warm_logits
from torch import Tensor, nn

from lt_train.backbones.imported.classifier import FeaturesOf, find_classifiers, warm_head
from lt_train.core.errors import UserError
from lt_train.datasets.base import DatasetSpec
from lt_train.features.bank import FeatureBank


def assert_same_logits(bank: FeatureBank, own: Tensor) -> None:
    torch.testing.assert_close(warm_logits(bank), own, rtol=0, atol=1e-5 * float(own.abs().max()))
    assert len(own.unique(dim=0)) == len(own) > 1


def identity(bank: FeatureBank) -> dict[str, Any]:
    assert bank.path is not None
    document: dict[str, Any] = json.loads((bank.path / "manifest.json").read_text())["inputs"]["backbone"]
    return document


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ({}, "[5, 18]"),
        ({"dims": [6, 4, 9]}, "[5, 19]"),
        ({"returns": "sum"}, "[5, 18], times 3 as in the model"),
        ({"returns": "confident"}, "[5, 18]"),
        ({"returns": "named"}, "[5, 18]"),
    ],
    ids=["mean", "mean of several widths", "sum", "in a tuple", "in a mapping"],
)
def test_experts_are_found_and_give_the_mean_that_the_model_returns(
    small: DatasetSpec, tmp_path: Path, allowed: str, arguments: dict[str, Any], note: str
) -> None:
    model = save_external(Ride(**arguments), tmp_path)
    bank = external_bank(tmp_path, "Ride", arguments)
    own = own_output(model, small) if arguments.get("returns") != "named" else own_output(model, small).mean(1)
    assert_same_logits(bank, own[0] if isinstance(own, tuple) else own)
    assert bank.notes[-1].endswith(
        f"the head starts from the mean of the logits of linears.0, linears.1, linears.2 {note}; features are "
        "concatenated"
    )
    named = ["linears.0", "linears.1", "linears.2"]
    assert identity(bank)["classifier"] == named
    assert external_bank(tmp_path, "Ride", arguments, classifier=named).fingerprint == bank.fingerprint


def test_the_head_of_experts_is_the_mean_of_their_concatenated_rows(tmp_path: Path, allowed: str) -> None:
    model = save_external(Ride(dims=[6, 4]), tmp_path)
    assert isinstance(model, Ride)
    bank = external_bank(tmp_path, "Ride", {"dims": [6, 4]})
    assert bank.head is not None
    first, second = model.linears
    torch.testing.assert_close(bank.head[0], torch.cat([first.weight, second.weight], dim=1).detach() / 2)
    torch.testing.assert_close(bank.head[1], (first.bias + second.bias).detach() / 2)
    assert bank.feature_dim == 10


def test_a_list_of_the_heads_logits_is_averaged_where_the_heads_are_named(
    small: DatasetSpec, tmp_path: Path, allowed: str
) -> None:
    model = save_external(Ride(returns="list"), tmp_path)
    own = own_output(model, small)
    two = external_bank(tmp_path, "Ride", {"returns": "list"}, classifier=["linears.2", "linears.0"])
    assert_same_logits(two, (own[0] + own[2]) / 2)
    for index in range(3):
        one = external_bank(tmp_path, "Ride", {"returns": "list"}, classifier=f"linears.{index}")
        assert torch.equal(warm_logits(one), own[index])
        listed = external_bank(tmp_path, "Ride", {"returns": "list"}, classifier=[f"linears.{index}"])
        assert listed.fingerprint == one.fingerprint


def test_a_published_model_of_two_heads(dataset: DatasetSpec, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    name, arguments = "deit_tiny_distilled_patch16_224", {"num_classes": CLASSES, "img_size": 32}
    model = save_external(timm.create_model(name, **arguments), tmp_path)
    file = str(tmp_path / "external.safetensors")
    bank = make_bank(dataset, tmp_path, factory=f"timm:{name}", arguments=arguments, checkpoint=file)
    assert_same_logits(bank, own_output(model, dataset))
    assert "the head starts from the mean of the logits of head, head_dist [5, 384]" in bank.notes[-1]


@pytest.mark.parametrize("times", [1.0, 2.5])
@pytest.mark.parametrize("hidden", [6, CLASSES], ids=["", "K = D"])
@pytest.mark.parametrize(("layer", "scale"), [("normed", 1), ("cosine", 16)])
def test_cosines_start_as_rows_of_equal_length_on_normalised_features(
    small: DatasetSpec, tmp_path: Path, allowed: str, layer: str, scale: float, hidden: int, times: float
) -> None:
    arguments = {"layer": layer, "times": times, "hidden": hidden}
    model = save_external(Tiny(**arguments), tmp_path)
    if layer == "cosine":
        scale = float(model.state_dict()["classifier.scale"])
    bank = external_bank(tmp_path, "Tiny", arguments)
    assert_same_logits(bank, own_output(model, small))
    assert bank.head is not None
    torch.testing.assert_close(bank.head[0].norm(dim=1), torch.full((CLASSES,), scale * times))
    assert not bank.head[1].any()
    torch.testing.assert_close(bank.test.features.norm(dim=-1), torch.ones(1, 10))
    assert bank.notes[-1].endswith(
        f"the head starts from classifier [5, {hidden}], with rows s W_k / |W_k|, s = {scale * times:.4g}, and bias 0; "
        "features are scaled to length 1"
    )
    assert identity(bank)["normalised"] == ["classifier"]
    alone = external_bank(tmp_path, "Tiny", arguments, use_head=False)
    torch.testing.assert_close(torch.nn.functional.normalize(alone.test.features, dim=-1), bank.test.features)
    assert alone.test.features.norm(dim=-1).std() > 0.01, "without the head they keep their lengths"


def test_experts_of_cosines_start_with_the_scale_applied_after_them(
    small: DatasetSpec, tmp_path: Path, allowed: str
) -> None:
    arguments: dict[str, Any] = {"layers": ["normed"] * 3, "s": 20, "dims": [6, 4, 6]}
    model = save_external(Ride(**arguments), tmp_path)
    bank = external_bank(tmp_path, "Ride", arguments)
    assert_same_logits(bank, own_output(model, small))
    assert bank.notes[-1].endswith(
        "linears.0, linears.1, linears.2 [5, 16], with rows s W_k / |W_k|, s = 20, and bias 0; features are "
        "concatenated; features are scaled to length 1"
    )
    assert identity(bank)["normalised"] == ["linears.0", "linears.1", "linears.2"]
    each = bank.test.features.split([6, 4, 6], dim=-1)
    torch.testing.assert_close(torch.stack([part.norm(dim=-1) for part in each]), torch.ones(3, 1, 10))


def test_experts_of_both_forms(small: DatasetSpec, tmp_path: Path, allowed: str) -> None:
    arguments: dict[str, Any] = {"layers": ["linear", "cosine", "unbiased"], "s": 2}
    model = save_external(Ride(**arguments), tmp_path)
    bank = external_bank(tmp_path, "Ride", arguments)
    assert_same_logits(bank, own_output(model, small))
    assert identity(bank)["normalised"] == ["linears.1"]
    assert bank.notes[-1].endswith(
        ", and bias 0 of linears.1; features are concatenated; features of linears.1 are scaled to length 1"
    )


@pytest.mark.parametrize("layer", ["weight_norm", "old_weight_norm", "lookalike"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_other_forms_of_linear_layers(small: DatasetSpec, tmp_path: Path, allowed: str, layer: str) -> None:
    model = save_external(Tiny(layer), tmp_path)
    bank = external_bank(tmp_path, "Tiny", {"layer": layer})
    assert_same_logits(bank, own_output(model, small))
    assert bank.notes[-1].endswith("the head starts from classifier [5, 6]")
    assert "normalised" not in identity(bank)


def test_a_factor_of_the_models_logits_is_part_of_the_head(small: DatasetSpec, tmp_path: Path, allowed: str) -> None:
    model = save_external(Tiny(times=0.25), tmp_path)
    bank = external_bank(tmp_path, "Tiny", {"times": 0.25})
    assert_same_logits(bank, own_output(model, small))
    assert bank.notes[-1].endswith("the head starts from classifier [5, 6], times 0.25 as in the model")


def test_classifiers_that_are_all_zero_do_not_show_which_the_model_uses() -> None:
    model = Ride(returns="first").eval()
    assert find_classifiers(model, torch.rand(2, 3, 8, 8), "it") == ("linears.0",)
    for parameter in model.linears.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(
        UserError, match=r"for it, because 3 linear layers produce its output: linears\.0, linears\.1, linears\.2\."
    ):
        find_classifiers(model, torch.rand(2, 3, 8, 8), "it")


def test_a_layer_is_measured_on_features_of_other_lengths_than_the_models_too() -> None:
    squashed = CLASSIFIERS["squashed"](192, CLASSES)
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(192, elementwise_affine=False), squashed)
    with pytest.raises(UserError, match=r"2 of it \(Squashed\) must be linear"):
        warm_head(FeaturesOf(model, ["2"], 3), torch.rand(2, 3, 8, 8), "it")


def test_a_note_if_the_model_returns_something_else(tmp_path: Path, allowed: str) -> None:
    save_external(Ride(returns="softmax"), tmp_path)
    bank = external_bank(tmp_path, "Ride", {"returns": "softmax"}, classifier="linears.1")
    assert bank.notes[-1].endswith(
        "the head starts from linears.1 [5, 6]; the model's output differs from these logits"
    )


def test_a_checkpoint_of_experts_behind_a_prefix_is_read(small: DatasetSpec, tmp_path: Path, allowed: str) -> None:
    arguments: dict[str, Any] = {"layers": ["normed"] * 3, "s": 30}
    model = scrambled(Ride(**arguments))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "external.safetensors")
    assert_same_logits(external_bank(tmp_path, "Ride", arguments), own_output(model, small))


def test_features_of_several_layers_can_be_used_without_the_head(tmp_path: Path, allowed: str) -> None:
    save_external(Ride(returns="softmax"), tmp_path)
    bank = external_bank(
        tmp_path, "Ride", {"returns": "softmax"}, classifier=["linears.0", "linears.2"], use_head=False
    )
    assert (bank.head, bank.feature_dim) == (None, 12)
    assert bank.notes[-1].endswith("features are the inputs of linears.0, linears.2, whose weights are not used")
