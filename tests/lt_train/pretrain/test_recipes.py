"""The recipes against their formulas, torch's weighted cross entropy and LDAM's code."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import sweeps
from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.backbones.layers import Classifier
from lt_train.core.errors import SpecError
from lt_train.datasets._images.transform import normalise
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.spec import FeaturesSpec
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone

COUNTS = torch.tensor([5000, 300, 20, 5])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits `[16, 4]` and labels `[16]`."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(16, 4, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def ldam_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """As in LDAM's code: (1 - beta) / (1 - beta^n), divided by their sum, times K."""
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights / weights.sum() * len(counts)).float()


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])
    loss = RECIPES.parse({"kind": "ce"}).loss(logits, torch.tensor([0, 1]), torch.tensor([5, 1]), 0)
    torch.testing.assert_close(loss, torch.tensor([math.log(4), math.log(2)]))


@pytest.mark.parametrize("kind", list(RECIPES.kinds()))
def test_every_recipe_gives_finite_losses_per_sample_and_positive_rates(kind: str) -> None:
    recipe = RECIPES.parse({"kind": kind})
    for epoch in range(recipe.epochs):
        loss = recipe.loss(torch.randn(8, 3), torch.arange(8) % 3, torch.tensor([100, 10, 1]), epoch)
        assert loss.shape == (8,)
        assert bool(loss.isfinite().all())
        assert recipe.learning_rate(epoch) > 0


@pytest.mark.parametrize("kind", ["balanced_softmax", "ce_drw", "ldam_drw"])
def test_recipes_that_use_class_counts_refuse_empty_classes(kind: str) -> None:
    reason = RECIPES.parse({"kind": kind}).incompatibility(torch.tensor([4, 0, 0]))
    assert "2 of 3" in reason
    assert reason.endswith("1, 2")
    assert RECIPES.parse({"kind": kind}).incompatibility(torch.tensor([4, 1, 1])) == ""


# The cosine schedule


def test_the_cosine_starts_at_lr_and_is_half_midway() -> None:
    recipe = RECIPES.parse({"kind": "ce", "lr": 0.4, "epochs": 10})
    assert recipe.learning_rate(0) == 0.4
    assert recipe.learning_rate(5) == pytest.approx(0.2)
    assert recipe.learning_rate(9) == pytest.approx(0.4 * 0.5 * (1 + math.cos(0.9 * math.pi)))


@pytest.mark.parametrize("ratio", [10, 50])
def test_bundled_sweeps_train_ltwbs_strong_baseline(ratio: int) -> None:
    spec = sweeps.load_sweep(Path(sweeps.__file__).parent / "specs" / f"cifar100_lt_ir{ratio}.yaml")
    assert spec.backbone is not None
    assert spec.backbone.kind == "resnet34"
    recipe = spec.stage1
    assert recipe is not None
    assert (recipe.kind, recipe.epochs, recipe.batch_size, recipe.momentum) == ("ce", 200, 64, 0.9)
    assert (recipe.lr, recipe.weight_decay) == (0.01, 5e-3)
    for epoch in range(200):  # torch's CosineAnnealingLR(optimizer, 200), eta_min 0
        assert recipe.learning_rate(epoch) == pytest.approx(0.01 * (1 + math.cos(math.pi * epoch / 200)) / 2)


# Deferred re-weighting


def test_before_reweighting_it_is_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw"}).loss(*batch, COUNTS, 159)
    assert torch.equal(loss, functional.cross_entropy(*batch, reduction="none"))


def test_with_reweighting_its_mean_is_torchs_weighted_mean(batch: tuple[Tensor, Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw"}).loss(*batch, COUNTS, 160)
    torch.testing.assert_close(loss.mean(), functional.cross_entropy(*batch, weight=ldam_weights(COUNTS)))


def test_the_mean_may_be_over_images(batch: tuple[Tensor, Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw", "weighted_mean": "batch"}).loss(*batch, COUNTS, 160)
    expected = functional.cross_entropy(*batch, weight=ldam_weights(COUNTS), reduction="none")
    torch.testing.assert_close(loss, expected)


def test_reweighting_starts_at_a_share_of_the_epochs_or_as_given(batch: tuple[Tensor, Tensor]) -> None:
    plain = functional.cross_entropy(*batch, reduction="none")
    for fields, start in (({"epochs": 10}, 8), ({"epochs": 10, "reweight_epoch": 3}, 3), ({"reweight_epoch": 0}, 0)):
        recipe = RECIPES.parse({"kind": "ce_drw"} | fields)
        weighted = [not torch.equal(recipe.loss(*batch, COUNTS, epoch), plain) for epoch in range(10)]
        assert weighted == [epoch >= start for epoch in range(10)]


def test_beta_0_gives_equal_weights(batch: tuple[Tensor, Tensor]) -> None:
    loss = RECIPES.parse({"kind": "ce_drw", "beta": 0}).loss(*batch, COUNTS, 199)
    torch.testing.assert_close(loss, functional.cross_entropy(*batch, reduction="none"))
    with pytest.raises(SpecError, match=r"ce_drw\.beta: must be in \[0, 1\), got 1"):
        RECIPES.parse({"kind": "ce_drw", "beta": 1})


def test_ce_steps_is_ce_drw_without_weights() -> None:
    steps, deferred = RECIPES.parse({"kind": "ce_steps"}), RECIPES.parse({"kind": "ce_drw"})
    logits, labels, counts = torch.randn(8, 3), torch.arange(8) % 3, torch.tensor([100, 10, 1])
    for epoch in (0, 159):
        assert torch.equal(steps.loss(logits, labels, counts, epoch), deferred.loss(logits, labels, counts, epoch))
    assert torch.equal(steps.loss(logits, labels, counts, 199), steps.loss(logits, labels, counts, 0))
    assert not torch.allclose(steps.loss(logits, labels, counts, 199), deferred.loss(logits, labels, counts, 199))
    assert [steps.learning_rate(epoch) for epoch in range(200)] == [deferred.learning_rate(e) for e in range(200)]


# Balanced softmax


def test_balanced_softmax_by_its_formula() -> None:
    recipe = RECIPES.parse({"kind": "balanced_softmax"})
    logits, labels, counts = torch.randn(8, 3), torch.arange(8) % 3, torch.tensor([100, 10, 1])
    weighted = counts * logits.exp()
    expected = -(weighted[torch.arange(8), labels] / weighted.sum(dim=1)).log()
    for epoch in (0, 199):
        torch.testing.assert_close(recipe.loss(logits, labels, counts, epoch), expected)
    equal = recipe.loss(logits, labels, torch.tensor([7, 7, 7]), 0)
    torch.testing.assert_close(equal, functional.cross_entropy(logits, labels, reduction="none"))


# LDAM

LDAM_COUNTS = torch.tensor([500, 60, 5])


def ldam_loss(cosines: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """`LDAMLoss` of LDAM's code: max_m = 0.5, s = 30."""
    margins = 1.0 / LDAM_COUNTS.double().sqrt().sqrt()
    margins = (margins * (0.5 / margins.max())).float()
    moved = torch.where(functional.one_hot(labels, 3).bool(), cosines - margins[labels][:, None], cosines)
    return functional.cross_entropy(30 * moved, labels, weight=weight)


@pytest.mark.parametrize(("epoch", "weight"), [(159, None), (160, ldam_weights(LDAM_COUNTS))])
def test_the_loss_is_that_of_ldams_code(epoch: int, weight: Tensor | None) -> None:
    cosines = 2 * torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) - 1
    labels = torch.arange(12) % 3
    loss = RECIPES.parse({"kind": "ldam_drw"}).loss(30 * cosines, labels, LDAM_COUNTS, epoch)
    torch.testing.assert_close(loss.mean(), ldam_loss(cosines, labels, weight), rtol=1e-5, atol=1e-5)


def test_without_a_margin_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    loss = RECIPES.parse({"kind": "ldam_drw", "max_margin": 0}).loss(logits, labels, LDAM_COUNTS, 0)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, reduction="none"))


def test_its_head_gives_cosines_times_the_scale() -> None:
    network = Classifier(BACKBONES.parse({"kind": "small_cnn", "width": 4}), 1, 3, cosine_scale=16.0).eval()
    images = torch.randn(5, 1, 8, 8)
    features = network.backbone[0](images)  # type: ignore[index]
    expected = 16 * functional.cosine_similarity(features[:, None], network.head.weight[None], dim=-1)
    torch.testing.assert_close(network(images), expected)
    assert [name for name, _ in network.head.named_parameters()] == ["weight"]


@pytest.mark.usefixtures("one_thread")
def test_bank_and_starting_head_give_the_logits_of_stage_1(digits: ImageData, tmp_path: Path) -> None:
    recipe = RECIPES.parse({"kind": "ldam_drw", "epochs": 10, "batch_size": 32})
    out = train_backbone(digits, BACKBONES.parse({"kind": "small_cnn", "width": 8}), recipe, tmp_path / "ldam")
    classifier, about = load_checkpoint(out)
    assert about["cosine_scale"] == 30
    assert about["accuracy"]["all"] > 0.5
    dataset = DATASETS.parse({"kind": "digits_lt"})
    bank = open_bank(build_bank(dataset, out, FeaturesSpec(test_flip=False), tmp_path / "banks"))
    assert bank.head is not None
    weight, bias = bank.head
    torch.testing.assert_close(weight.norm(dim=1), torch.full((10,), 30.0))
    assert not bias.any()
    torch.testing.assert_close(bank.test.features[0].norm(dim=1), torch.ones(len(digits.test)))
    with torch.inference_mode():
        own = classifier(normalise(digits.test.inputs, digits.mean, digits.std))
    torch.testing.assert_close(functional.linear(bank.test.features[0], weight, bias), own, rtol=1e-4, atol=1e-4)
