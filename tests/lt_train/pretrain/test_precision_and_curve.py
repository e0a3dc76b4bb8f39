"""Mixed precision keeps weights in float32, and the checkpoint holds a training curve."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core.errors import UserError
from lt_train.datasets.base import ImageData
from lt_train.metrics import SPLITS
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone


def train(data: ImageData, out: Path, **fields: Any) -> dict[str, Any]:
    """The document of the checkpoint."""
    recipe = RECIPES.parse({"kind": "ce", "epochs": 3} | fields)
    return load_checkpoint(train_backbone(data, BACKBONES.parse({"kind": "small_cnn", "width": 8}), recipe, out))[1]


def test_bfloat16_trains_other_weights_and_keeps_them_in_float32(digits: ImageData, tmp_path: Path) -> None:
    exact, mixed = train(digits, tmp_path / "float32"), train(digits, tmp_path / "bfloat16", precision="bfloat16")
    one, other = load_file(tmp_path / "float32"), load_file(tmp_path / "bfloat16")
    assert {name: tensor.dtype for name, tensor in one.items()} == {n: tensor.dtype for n, tensor in other.items()}
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert mixed["recipe"]["precision"] == "bfloat16"
    assert mixed["curve"][-1]["loss"] == pytest.approx(exact["curve"][-1]["loss"], abs=0.2)


def test_losses_are_computed_from_float32_logits(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, seen = RECIPES.kinds()["ce"], set()
    loss = recipe.loss

    def spy(self: Any, logits: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.add((logits.dtype, torch.is_autocast_enabled("cpu")))
        return loss(self, logits, *others)

    monkeypatch.setattr(recipe, "loss", spy)
    train(digits, tmp_path / "out", precision="bfloat16", epochs=1)
    assert seen == {(torch.float32, False)}


def test_float16_is_refused_without_cuda(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"precision float16 .*cpu.* use bfloat16"):
        train(digits, tmp_path / "out", precision="float16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_scales_gradients_and_resumes_with_its_scale(digits: ImageData, tmp_path: Path) -> None:
    recipe = RECIPES.parse({"kind": "ce", "epochs": 2, "precision": "float16"})
    job = digits, BACKBONES.parse({"kind": "small_cnn", "width": 8}), recipe
    train_backbone(*job, tmp_path / "whole", device="cuda")
    with pytest.raises(KeyboardInterrupt):
        train_backbone(*job, tmp_path / "out", device="cuda", stop=lambda: True)
    train_backbone(*job, tmp_path / "out", device="cuda")
    one, other = load_file(tmp_path / "whole"), load_file(tmp_path / "out")
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_the_curve_has_one_point_per_epoch(digits: ImageData, tmp_path: Path) -> None:
    document = train(digits, tmp_path / "out", epochs=12, val_every=5)
    curve, recipe = document["curve"], RECIPES.parse({"kind": "ce", "epochs": 12})
    assert [point["epoch"] for point in curve] == list(range(1, 13))
    assert [point["lr"] for point in curve] == [recipe.learning_rate(epoch) for epoch in range(12)]
    assert curve[-1]["loss"] < curve[0]["loss"] / 2
    assert curve[0]["accuracy"] < curve[-1]["accuracy"] <= 1
    measured = {point["epoch"]: set(point["val"]) for point in curve if "val" in point}
    assert measured == {epoch: set(SPLITS) for epoch in (5, 10)}
    assert curve[9]["val"]["all"] == pytest.approx(document["accuracy"]["all"], abs=0.15)


def test_measuring_on_val_changes_no_weight(digits: ImageData, tmp_path: Path) -> None:
    train(digits, tmp_path / "with", val_every=1)
    train(digits, tmp_path / "without")
    one, other = load_file(tmp_path / "with"), load_file(tmp_path / "without")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_val_every_needs_a_validation_set(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val_every is 2, but this dataset has no validation set"):
        train(dataclasses.replace(digits, val=None), tmp_path / "out", val_every=2)


def test_a_training_that_diverges_has_no_loss_and_valid_json(digits: ImageData, tmp_path: Path) -> None:
    curve = train(digits, tmp_path / "out", lr=1e30)["curve"]
    assert curve[-1]["loss"] is None


@pytest.mark.parametrize(
    ("fields", "workers"), [({"val_every": 1}, 1), ({"val_every": 1}, 2), ({"sync_batch_norm": True}, 1)]
)
def test_fields_without_effect_on_weights_are_not_part_of_the_identity(fields: dict[str, Any], workers: int) -> None:
    with_it, without = RECIPES.parse({"kind": "ce"} | fields), RECIPES.parse({"kind": "ce"})
    assert with_it.identity(workers=workers) == without.identity(workers=workers)


def test_shared_batch_norm_statistics_are_part_of_the_identity() -> None:
    shared, alone = (RECIPES.parse({"kind": "ce", "sync_batch_norm": value}) for value in (True, False))
    assert shared.identity(workers=2) != alone.identity(workers=2)
    assert shared.identity() != alone.identity()


def test_a_training_resumes_with_another_val_every(digits: ImageData, tmp_path: Path) -> None:
    train(digits, tmp_path / "whole")
    job = digits, BACKBONES.parse({"kind": "small_cnn", "width": 8}), RECIPES.parse({"kind": "ce", "epochs": 3})
    with pytest.raises(KeyboardInterrupt):
        train_backbone(*job, tmp_path / "out", stop=lambda: True)
    notes: list[str] = []
    recipe = RECIPES.parse({"kind": "ce", "epochs": 3, "val_every": 1, "sync_batch_norm": True})
    train_backbone(*job[:2], recipe, tmp_path / "out", report=lambda done, total, note: notes.append(note))
    assert notes[0] == "resumed in epoch 1 after 1 steps"
    one, other = load_file(tmp_path / "whole"), load_file(tmp_path / "out")
    assert all(torch.equal(one[name], other[name]) for name in one)
