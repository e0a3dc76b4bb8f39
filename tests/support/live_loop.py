"""Stage 2 as papers have it: every epoch crops and mirrors the images anew and runs them through the frozen backbone.

What banks are held against. Of this project it takes the random numbers alone (`draw_views`, and streams by name), so
that the same images come in the same order; cropping, normalisation, loss, optimiser and schedule are torch's.
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

__all__ = ["Loop", "TrialRuns", "accuracies", "running_statistics", "top1_correct", "train_live"]


@dataclass(frozen=True)
class Loop:
    """How long; `batch_norm_trains` leaves batch norm in train mode, as the paper's released code does."""

    epochs: int
    batch_size: int
    batch_norm_trains: bool = False


@dataclass(frozen=True)
class TrialRuns:
    """What one head is trained with: cross entropy against smoothed labels, 0 for plain ones."""

    smooth_factor: float
    lr: float


def train_live(
    network: nn.Module,
    start: tuple[Tensor, Tensor],
    data: ImageData,
    settings: Mapping[str, TrialRuns],
    loop: Loop,
    seed: int,
    view_seed: int = 0,
) -> dict[str, nn.Linear]:
    """A head for every setting, all from `start` and on the same batches, so that these are forwarded once.

    The network's weights stay; with `batch_norm_trains` its running statistics do not.
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
        for queue in schedules:
            queue.step()
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
    """Bool `[N]` a head: whether the largest logit on a test image, averaged with its mirror's, is its label's."""
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
    """Fractions of test images of all, many (n > 100), medium and few (n < 20) classes."""
    size = data.split_counts[data.test.labels]
    chosen = {"all": size > 0, "many": size > 100, "medium": (size <= 100) & (size >= 20), "few": size < 20}
    return {name: float(hit[mask].float().mean()) for name, mask in chosen.items()}


def running_statistics(network: nn.Module) -> tuple[Tensor, Tensor]:
    """All running means, and all running variances, of a network's batch norms, in one row each."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    means, variances = [one.running_mean for one in norms], [one.running_var for one in norms]
    return torch.cat([one.clone() for one in means]), torch.cat([one.clone() for one in variances])
