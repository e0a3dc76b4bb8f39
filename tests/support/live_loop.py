"""Stage 2 as in the literature: every epoch augments the images and runs them through the frozen backbone.

Tests and benchmarks compare feature banks with this loop. It uses the project's random numbers only (`draw_views` and
named streams), so that images and order agree; cropping, normalisation, loss, optimiser and schedule are torch's.

Shapes: N images, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lt_train.core import seeding
from lt_train.datasets._images.transform import draw_views
from lt_train.datasets.base import ImageData, PadCrop

__all__ = ["HeadConfig", "Loop", "accuracies", "running_statistics", "top1_correct", "train_live"]


@dataclass(frozen=True)
class Loop:
    """Length of training; `batch_norm_trains` keeps batch norm in train mode, as in the paper's released code."""

    epochs: int
    batch_size: int
    batch_norm_trains: bool = False


@dataclass(frozen=True)
class HeadConfig:
    """Hyperparameters of one head; the loss is cross entropy with label smoothing, 0 for none."""

    smooth_factor: float
    lr: float


def train_live(
    network: nn.Module,
    start: tuple[Tensor, Tensor],
    data: ImageData,
    settings: Mapping[str, HeadConfig],
    loop: Loop,
    seed: int,
    view_seed: int = 0,
) -> dict[str, nn.Linear]:
    """One head per setting, all from `start` and on the same batches, which are forwarded once.

    The network's weights are unchanged; with `batch_norm_trains` its running statistics change.
    """
    assert isinstance(data.augmentation, PadCrop)
    assert isinstance(data.train.inputs, Tensor)
    heads = {name: _linear(*start) for name in settings}
    losses = {name: nn.CrossEntropyLoss(label_smoothing=one.smooth_factor) for name, one in settings.items()}
    optimisers = {
        name: torch.optim.SGD(heads[name].parameters(), lr=one.lr, momentum=0.9) for name, one in settings.items()
    }
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=loop.epochs) for one in optimisers.values()]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.train(loop.batch_norm_trains)
    for epoch in range(loop.epochs):
        stream = seeding.generator("feature view", view_seed, epoch)
        drawn = draw_views(len(data.train), data.augmentation, stream).tolist()
        order = torch.randperm(len(data.train), generator=seeding.generator("batch-order", seed, epoch))
        for batch in order.split(loop.batch_size):
            images = [_augmented(data.train.inputs[i], *drawn[i], pad=data.augmentation.pad) for i in batch.tolist()]
            with torch.no_grad():
                features = network(_normalised(torch.stack(images), data))
            for name, head in heads.items():
                optimisers[name].zero_grad()
                losses[name](head(features), data.train.labels[batch]).backward()
                optimisers[name].step()
        for schedule in schedules:
            schedule.step()
    network.eval()
    return heads


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def _augmented(image: Tensor, row: int, column: int, mirrored: int, *, pad: int) -> Tensor:
    height, width = image.shape[-2:]
    cropped = nn.functional.pad(image, (pad, pad, pad, pad))[:, row : row + height, column : column + width]
    return cropped.flip(-1) if mirrored else cropped


def _normalised(images: Tensor, data: ImageData) -> Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def top1_correct(network: nn.Module, heads: Mapping[str, nn.Linear], data: ImageData, flip: bool) -> dict[str, Tensor]:
    """Bool `[N]` per head: whether the prediction, averaged with that of the mirrored image if `flip`, is correct."""
    network.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in heads}
    for start in range(0, len(data.test), 500):
        batch = slice(start, start + 500)
        images = data.test.inputs[batch]
        views = [network(_normalised(one, data)) for one in ([images, images.flip(-1)] if flip else [images])]
        for name, head in heads.items():
            logits = torch.stack([head(features) for features in views]).mean(dim=0)
            found[name].append(logits.argmax(dim=1) == data.test.labels[batch])
    return {name: torch.cat(parts) for name, parts in found.items()}


def accuracies(hit: Tensor, data: ImageData) -> dict[str, float]:
    """Top-1 accuracy on all, many (n > 100), medium and few (n < 20) classes."""
    size = data.split_counts[data.test.labels]
    chosen = {"all": size > 0, "many": size > 100, "medium": (size <= 100) & (size >= 20), "few": size < 20}
    return {name: float(hit[mask].float().mean()) for name, mask in chosen.items()}


def running_statistics(network: nn.Module) -> tuple[Tensor, Tensor]:
    """The running means and the running variances of all batch norms of a network, each as one vector."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    means, variances = [one.running_mean for one in norms], [one.running_var for one in norms]
    return torch.cat([one.clone() for one in means]), torch.cat([one.clone() for one in variances])
