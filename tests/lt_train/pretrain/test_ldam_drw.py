"""LDAM's margins by its own code, and what its normalised head leaves behind for re-training."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from lt_train.backbones.base import BACKBONES, Classifier
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.datasets._images.transform import normalise
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.features.extract import FeaturesSpec, build_bank
from lt_train.features.files import open_bank
from lt_train.pretrain.base import RECIPES
from lt_train.pretrain.train import train_backbone

COUNTS = torch.tensor([500, 60, 5])


def ldam_loss(cosines: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """`LDAMLoss` of LDAM's code: max_m = 0.5, s = 30."""
    margins = 1.0 / COUNTS.double().sqrt().sqrt()
    margins = (margins * (0.5 / margins.max())).float()
    moved = torch.where(functional.one_hot(labels, 3).bool(), cosines - margins[labels][:, None], cosines)
    return functional.cross_entropy(30 * moved, labels, weight=weight)


def test_the_loss_is_that_of_ldams_code() -> None:
    recipe = RECIPES.parse({"kind": "ldam_drw"})
    generator = torch.Generator().manual_seed(0)
    cosines, labels = 2 * torch.rand(12, 3, generator=generator) - 1, torch.arange(12) % 3
    plain = recipe.loss(30 * cosines, labels, COUNTS, 159)
    torch.testing.assert_close(plain.mean(), ldam_loss(cosines, labels, None))
    weights = (1 - 0.9999) / (1 - 0.9999 ** COUNTS.double())
    weights = (weights / weights.sum() * 3).float()
    torch.testing.assert_close(
        recipe.loss(30 * cosines, labels, COUNTS, 160).mean(), ldam_loss(cosines, labels, weights), rtol=1e-5, atol=1e-5
    )


def test_without_a_margin_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    loss = RECIPES.parse({"kind": "ldam_drw", "max_margin": 0}).loss(logits, labels, COUNTS, 0)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, reduction="none"))


def test_its_head_gives_cosines_times_the_scale() -> None:
    network = Classifier(BACKBONES.parse({"kind": "small_cnn", "width": 4}), 1, 3, cosine_scale=16.0).eval()
    images = torch.randn(5, 1, 8, 8)
    features = network.backbone[0](images)  # type: ignore[index]
    expected = 16 * functional.cosine_similarity(features[:, None], network.head.weight[None], dim=-1)
    torch.testing.assert_close(network(images), expected)
    assert [name for name, _ in network.head.named_parameters()] == ["weight"]


@pytest.mark.usefixtures("one_thread")
def test_bank_and_warm_head_give_the_logits_of_stage_1(tmp_path: Path) -> None:
    dataset = DATASETS.parse({"kind": "digits_lt"})
    data = dataset.load()
    assert isinstance(data, ImageData)
    recipe = RECIPES.parse({"kind": "ldam_drw", "epochs": 10, "batch_size": 32})
    out = train_backbone(data, BACKBONES.parse({"kind": "small_cnn", "width": 8}), recipe, tmp_path / "ldam")
    classifier, about = load_checkpoint(out)
    assert about["cosine_scale"] == 30
    assert about["accuracy"]["all"] > 0.5
    bank = open_bank(build_bank(dataset, out, FeaturesSpec(test_flip=False), tmp_path / "banks"))
    assert bank.head is not None
    weight, bias = bank.head
    torch.testing.assert_close(weight.norm(dim=1), torch.full((10,), 30.0))
    assert not bias.any()
    torch.testing.assert_close(bank.test.features[0].norm(dim=1), torch.ones(len(data.test)))
    with torch.inference_mode():
        own = classifier(normalise(data.test.inputs, data.mean, data.std))
    torch.testing.assert_close(functional.linear(bank.test.features[0], weight, bias), own, rtol=1e-4, atol=1e-4)
