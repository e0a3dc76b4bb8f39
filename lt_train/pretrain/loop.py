"""The training loop of stage 1: a network, its optimiser and the training's progress, resumable after any step.

Order, augmentation and dropout are drawn from random streams named by (seed, epoch) and (seed, epoch, step). The state
therefore consists of epoch, step, weights, momentum and sums; no generator's state is saved. With several ranks each
trains on its slice of the batches that a single process would have.

Shapes: N images, B images in the batch of all ranks, R ranks, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lt_train.backbones.layers import Classifier
from lt_train.core import seeding
from lt_train.datasets._images.files import Images, read_ahead
from lt_train.datasets._images.transform import View, draw_views, normalise
from lt_train.datasets.base import ImageData, Labelled
from lt_train.metrics.accuracy import SPLITS, correct_per_class, split_accuracy, split_masks, top1_correct
from lt_train.pretrain.process_group import ProcessGroup
from lt_train.pretrain.recipes import RecipeSpec

__all__ = ["Training", "accuracy"]

_EVALUATION_BATCH = 500
_MODEL, _MOMENTUM, _SUMS = "model.", "momentum.", "sums"


class Training:
    """One training in progress.

    Attributes:
        epoch: the current epoch, from 0; `steps` of it are done.
        curve: one entry per finished epoch: `epoch` (from 1), `lr`, `loss` and `accuracy` (means over the augmented
            training images; `loss` is null if not finite) and, every `val_every` epochs, `val` (accuracies by split).
    """

    def __init__(
        self, classifier: Classifier, data: ImageData, recipe: RecipeSpec, seed: int, device: str, group: ProcessGroup
    ) -> None:
        """`classifier` is initialised and already on `device`."""
        self.classifier, self.data, self.recipe = classifier, data, recipe
        self.seed, self.device, self.group = seed, device, group
        self.network: torch.nn.Module = classifier
        self.optimiser = torch.optim.SGD(
            classifier.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=recipe.precision == "float16")
        self.class_counts = data.class_counts().to(device)
        self.epoch, self.steps = 0, 0
        self.curve: list[dict[str, Any]] = []
        # Sum of losses and number of correct images of this rank, over the epoch so far.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that is needed to resume: tensors and a JSON document. Every rank must call this."""
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        for name, parameter in self.classifier.named_parameters():
            buffer = self.optimiser.state[parameter].get("momentum_buffer")
            if buffer is not None:  # None without momentum, or for a parameter that the loss does not depend on
                tensors[f"{_MOMENTUM}{name}"] = buffer
        tensors[_SUMS] = self.group.all_gather(self.sums)
        scaler = self.scaler.state_dict()  # empty except for float16
        return tensors, {"epoch": self.epoch, "steps": self.steps, "curve": self.curve, "scaler": scaler}

    def restore(self, tensors: dict[str, Tensor], document: Mapping[str, Any]) -> None:
        """Continue from rank 0's `state`; call it on every rank, before `begin`."""
        document, tensors = self.group.broadcast(document), self.group.broadcast_tensors(tensors)
        self.epoch, self.steps, self.curve = document["epoch"], document["steps"], document["curve"]
        if document["scaler"]:
            self.scaler.load_state_dict(document["scaler"])
        self.sums.copy_(tensors[_SUMS][self.group.rank])
        self.classifier.load_state_dict(
            {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items() if name.startswith(_MODEL)}
        )
        for name, parameter in self.classifier.named_parameters():
            if (buffer := tensors.get(f"{_MOMENTUM}{name}")) is not None:
                self.optimiser.state[parameter]["momentum_buffer"] = _like(parameter, buffer)

    def begin(self) -> None:
        """Wrap the network for training with the other ranks."""
        self.network = self.group.wrap(self.classifier, sync_batch_norm=self.recipe.sync_batch_norm)

    def run_epoch(self, between: Callable[[], None]) -> float:
        """Train the rest of the current epoch and return its mean loss; `between` is called between two steps.

        If `between` raises, the training can be resumed at the next step.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.epoch)
        stream = seeding.generator("stage1 epoch", self.seed, self.epoch)
        order = torch.randperm(len(self.data.train), generator=stream)
        drawn = draw_views(len(self.data.train), self.data.augmentation, stream)
        view = View(self.data.train.inputs, self.data.augmentation, drawn)
        # Batch norm needs more than one image.
        batches = [chosen for chosen in order.split(self.recipe.batch_size) if len(chosen) > 1]
        left = batches[self.steps :]
        parts = [chosen[self.group.share(len(chosen))] for chosen in left]
        self.network.train()
        for chosen, read in zip(left, read_ahead(view, parts), strict=True):
            with seeding.global_stream(
                self.device, "stage1 network", self.seed, self.epoch, self.steps, *self.group.stream_suffix
            ):
                self._step(chosen, read)
            self.steps += 1
            if self.steps < len(batches):
                between()
        return self._close(sum(map(len, batches)))

    def _step(self, chosen: Tensor, images: Tensor) -> None:
        """One step on the batch `chosen` (indices of all ranks' images); `images` are this rank's."""
        share, count = self.group.share(len(chosen)), len(chosen)
        labels = self.data.train.labels[chosen].to(self.device)
        inputs = normalise(images.to(self.device), self.data.mean, self.data.std)
        with _autocast(self.device, self.recipe.precision):
            logits = self.network(inputs.contiguous(memory_format=torch.channels_last))
        logits = logits.float()
        losses = self._losses(logits, labels, share)
        shared = self.group.splits(count)
        # Gradients are averaged over ranks, whatever the sizes of their shares.
        mean = losses.sum() * (self.group.count / count) if shared else losses.mean()
        self.optimiser.zero_grad()
        self.scaler.scale(mean).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if shared or self.group.is_main:
            found = top1_correct(logits.detach(), labels[share])
            self.sums += torch.stack([losses.detach().sum(dtype=torch.float64), found.sum(dtype=torch.float64)])

    def _losses(self, logits: Tensor, labels: Tensor, share: slice) -> Tensor:
        """Losses of this rank's images. The recipe gets the labels of all ranks, which a common divisor may need."""
        if len(logits) == len(labels):
            return self.recipe.loss(logits, labels, self.class_counts, self.epoch)
        padded = logits.new_zeros(len(labels), logits.shape[1])
        padded[share] = logits
        return self.recipe.loss(padded, labels, self.class_counts, self.epoch)[share]

    def _close(self, images: int) -> float:
        """Append the finished epoch to the curve and advance to the next one."""
        loss, correct = (self.group.all_gather(self.sums).sum(dim=0) / images).tolist()
        entry: dict[str, Any] = {"epoch": self.epoch + 1, "lr": self.recipe.learning_rate(self.epoch)}
        entry |= {"loss": loss if math.isfinite(loss) else None, "accuracy": correct}
        if self.recipe.val_every and (self.epoch + 1) % self.recipe.val_every == 0 and self.group.is_main:
            assert self.data.val is not None, "val_every without a validation set is refused"
            entry["val"] = accuracy(self.classifier, self.data.val, self.data, self.device)
        self.curve.append(entry)
        self.epoch, self.steps = self.epoch + 1, 0
        self.sums.zero_()
        return float(loss)


def accuracy(classifier: Classifier, part: Labelled[Images], data: ImageData, device: str) -> dict[str, float | None]:
    """Top-1 accuracy on `part` by split, null for an empty split; in evaluation mode and float32."""
    classifier.eval()
    correct = torch.zeros(data.num_classes)
    with torch.inference_mode():
        batches = [slice(start, start + _EVALUATION_BATCH) for start in range(0, len(part), _EVALUATION_BATCH)]
        for batch, read in zip(batches, read_ahead(part.inputs, batches), strict=True):
            logits = classifier(normalise(read.to(device), data.mean, data.std))
            correct += correct_per_class(logits.cpu(), part.labels[batch], data.num_classes)
    total = torch.bincount(part.labels, minlength=data.num_classes)
    found = split_accuracy(correct, total, split_masks(data.split_counts)).tolist()
    return {split: None if value != value else value for split, value in zip(SPLITS, found, strict=True)}


def _autocast(device: str, precision: str) -> torch.autocast:
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != "float32")


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """`values` on the device and in the memory layout of `parameter`, so that updates use the same kernels."""
    return torch.empty_like(parameter, requires_grad=False).copy_(values)
