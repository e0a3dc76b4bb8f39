"""A bank with as many views as epochs trains the same head as a live loop through the frozen backbone."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.live_loop import HeadConfig, Loop, accuracies, running_statistics, top1_correct, train_live
from torch import nn

import lt_train
from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.features.extract import build_bank
from lt_train.features.spec import FeaturesSpec
from lt_train.metrics import SPLITS
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone

EPOCHS, SEED = 4, 2
SETTING = {"los": HeadConfig(smooth_factor=0.8, lr=0.05)}
FASHION = Path("/usr/share/datasets/fashion-mnist")
KINDS = [
    "digits_lt",
    pytest.param(
        "fashion_mnist_lt",
        marks=pytest.mark.skipif(not FASHION.is_dir(), reason=f"the package dataset-fashion-mnist is not in {FASHION}"),
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_and_a_live_loop_train_the_same_head(kind: str, tmp_path: Path) -> None:
    dataset = DATASETS.parse({"kind": kind})
    data = dataset.load()
    assert isinstance(data, ImageData)
    checkpoint = tmp_path / "stage1.safetensors"
    recipe = RECIPES.parse({"kind": "ce", "epochs": 2, "batch_size": 64})
    train_backbone(data, BACKBONES.parse({"kind": "small_cnn", "width": 8}), recipe, checkpoint)
    bank = lt_train.open_bank(build_bank(dataset, checkpoint, FeaturesSpec(views=EPOCHS), tmp_path / "banks"))
    method = lt_train.METHODS.parse({"kind": "los", "smooth_factor": 0.8, "lr": 0.05})
    run = lt_train.Run(method, lt_train.TrainingSpec(epochs=EPOCHS, batch_size=64), SEED)
    result = lt_train.fit(bank, run)[0].result
    assert result.kept is not None

    classifier, _ = load_checkpoint(checkpoint)
    network, start = classifier.backbone, (classifier.head.weight, classifier.head.bias)
    assert isinstance(network, nn.Module)
    flip, before = data.augmentation.flip, running_statistics(network)
    drifting = deepcopy(network)
    head = train_live(network, start, data, SETTING, Loop(EPOCHS, 64), SEED)["los"]
    weight, bias = (torch.from_numpy(result.kept.state[name]) for name in ("weight", "bias"))
    assert (head.weight - start[0]).abs().max() > 0.01  # training has changed the head
    torch.testing.assert_close(head.weight.detach(), weight, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(head.bias.detach(), bias, atol=2e-5, rtol=1e-4)
    live = accuracies(top1_correct(network, {"los": head}, data, flip)["los"], data)
    for split, accuracy in zip(SPLITS, result.test_accuracy[-1].tolist(), strict=True):
        assert np.isclose(live[split], accuracy, atol=1e-3, rtol=0), split
    assert all(map(torch.equal, running_statistics(network), before))

    # The comparison is sensitive: with batch norm in train mode the same loop gives another head.
    published = Loop(EPOCHS, 64, batch_norm_trains=True)
    other = train_live(drifting, start, data, SETTING, published, SEED)["los"]
    assert not torch.allclose(other.weight, weight, atol=1e-3)
    assert not any(map(torch.equal, running_statistics(drifting), before))
