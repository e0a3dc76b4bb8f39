"""The loop of stage 1: one network, its optimiser, and how far they are. It can stop and go on after any step.

Order, augmentation and dropout are drawn from streams named by (seed, epoch) and (seed, epoch, step), so that place,
weights, momentum and sums are all there is to keep: no generator's state is. With several ranks each trains its slice
of the very batches that one process would have. Knows no file and no clock.
Shapes: N images, B of them a batch of all ranks, R ranks, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lt_train.backbones.base import Classifier
from lt_train.core import seeding
from lt_train.datasets._images.files import Images, read_ahead
from lt_train.datasets._images.transform import View, draw_views, normalise
from lt_train.datasets.base import ImageData, Labelled
from lt_train.metrics.accuracy import SPLITS, correct_per_class, split_accuracy, split_masks, top1_correct
from lt_train.pretrain.base import RecipeSpec
from lt_train.pretrain.process_group import ProcessGroup

__all__ = ["Training", "accuracy"]

_EVALUATION_BATCH = 500
_MODEL, _MOMENTUM, _SUMS = "model.", "momentum.", "sums"


class Training:
    """A training under way.

    Attributes:
        epoch: the epoch to go on in, from 0; `steps` of it are done.
        curve: what each epoch before it came to: `epoch` (from 1), `lr`, `loss` and `accuracy`, the means over its
            images as they were trained on (`loss` null where it is no number), and where the recipe asks for it
            `val`, accuracies by split.
    """

    def __init__(
        self, classifier: Classifier, data: ImageData, recipe: RecipeSpec, seed: int, device: str, ranks: ProcessGroup
    ) -> None:
        """`classifier` is on `device` already, and as it is to begin with."""
        self.classifier, self.data, self.recipe = classifier, data, recipe
        self.seed, self.device, self.ranks = seed, device, ranks
        self.network: torch.nn.Module = classifier
        self.optimiser = torch.optim.SGD(
            classifier.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=recipe.precision == "float16")
        self.class_counts = data.class_counts().to(device)
        self.epoch, self.steps = 0, 0
        self.curve: list[dict[str, Any]] = []
        # Loss and hits over this rank's images of the epoch so far.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that decides how the training goes on: tensors, and a JSON document. Every rank is to ask."""
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        for name, parameter in self.classifier.named_parameters():
            buffer = self.optimiser.state[parameter].get("momentum_buffer")
            if buffer is not None:  # there is none without momentum, or for what the loss does not reach
                tensors[f"{_MOMENTUM}{name}"] = buffer
        tensors[_SUMS] = self.ranks.gathered(self.sums)
        scaler = self.scaler.state_dict()  # empty but for float16
        return tensors, {"epoch": self.epoch, "steps": self.steps, "curve": self.curve, "scaler": scaler}

    def restore(self, tensors: dict[str, Tensor], document: Mapping[str, Any]) -> None:
        """Go on from a `state`, that of the first rank; before `begin`, on every rank."""
        document, tensors = self.ranks.from_first(document), self.ranks.tensors_from_first(tensors)
        self.epoch, self.steps, self.curve = document["epoch"], document["steps"], document["curve"]
        if document["scaler"]:
            self.scaler.load_state_dict(document["scaler"])
        self.sums.copy_(tensors[_SUMS][self.ranks.rank])
        self.classifier.load_state_dict(
            {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items() if name.startswith(_MODEL)}
        )
        for name, parameter in self.classifier.named_parameters():
            if (buffer := tensors.get(f"{_MOMENTUM}{name}")) is not None:
                self.optimiser.state[parameter]["momentum_buffer"] = _like(parameter, buffer)

    def begin(self) -> None:
        """Let the ranks find one another's network."""
        self.network = self.ranks.wrap(self.classifier, sync_batch_norm=self.recipe.sync_batch_norm)

    def run_epoch(self, between: Callable[[], None]) -> float:
        """The rest of the epoch under way, `between` called between two steps; its mean loss.

        What `between` raises leaves the training as it was before the next step.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.epoch)
        stream = seeding.generator("stage1 epoch", self.seed, self.epoch)
        order = torch.randperm(len(self.data.train), generator=stream)
        drawn = draw_views(len(self.data.train), self.data.augmentation, stream)
        view = View(self.data.train.inputs, self.data.augmentation, drawn)
        # Batch norm has no variance to speak of in a batch of one.
        batches = [chosen for chosen in order.split(self.recipe.batch_size) if len(chosen) > 1]
        left = batches[self.steps :]
        parts = [chosen[self.ranks.share(len(chosen))] for chosen in left]
        self.network.train()
        for chosen, read in zip(left, read_ahead(view, parts), strict=True):
            with seeding.global_stream(
                self.device, "stage1 network", self.seed, self.epoch, self.steps, *self.ranks.own
            ):
                self._step(chosen, read)
            self.steps += 1
            if self.steps < len(batches):
                between()
        return self._close(sum(map(len, batches)))

    def _step(self, chosen: Tensor, images: Tensor) -> None:
        """One step on the batch `chosen`, of which `images` are this rank's."""
        share, count = self.ranks.share(len(chosen)), len(chosen)
        labels = self.data.train.labels[chosen].to(self.device)
        inputs = normalise(images.to(self.device), self.data.mean, self.data.std)
        with _autocast(self.device, self.recipe.precision):
            logits = self.network(inputs.contiguous(memory_format=torch.channels_last))
        logits = logits.float()
        losses = self._losses(logits, labels, share)
        shared = self.ranks.splits(count)
        # ProcessGroup' gradients are averaged, whatever their shares were.
        mean = losses.sum() * (self.ranks.count / count) if shared else losses.mean()
        self.optimiser.zero_grad()
        self.scaler.scale(mean).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if shared or self.ranks.first:
            found = top1_correct(logits.detach(), labels[share])
            self.sums += torch.stack([losses.detach().sum(dtype=torch.float64), found.sum(dtype=torch.float64)])

    def _losses(self, logits: Tensor, labels: Tensor, share: slice) -> Tensor:
        """Losses of this rank's images. The recipe sees the labels of all, by which it may divide."""
        if len(logits) == len(labels):
            return self.recipe.loss(logits, labels, self.class_counts, self.epoch)
        everyone = logits.new_zeros(len(labels), logits.shape[1])
        everyone[share] = logits
        return self.recipe.loss(everyone, labels, self.class_counts, self.epoch)[share]

    def _close(self, images: int) -> float:
        """Enter what the epoch came to into the curve, and turn to the next."""
        loss, correct = (self.ranks.gathered(self.sums).sum(dim=0) / images).tolist()
        entry: dict[str, Any] = {"epoch": self.epoch + 1, "lr": self.recipe.learning_rate(self.epoch)}
        entry |= {"loss": loss if math.isfinite(loss) else None, "accuracy": correct}
        if self.recipe.val_every and (self.epoch + 1) % self.recipe.val_every == 0 and self.ranks.first:
            assert self.data.val is not None, "a recipe that measures on val is refused without one"
            entry["val"] = accuracy(self.classifier, self.data.val, self.data, self.device)
        self.curve.append(entry)
        self.epoch, self.steps = self.epoch + 1, 0
        self.sums.zero_()
        return float(loss)


def accuracy(classifier: Classifier, part: Labelled[Images], data: ImageData, device: str) -> dict[str, float | None]:
    """Top-1 on `part` by split, null for one without images; in evaluation mode and float32."""
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
    """`values` on the device and in the memory layout of `parameter`, so that the update takes the same code path."""
    return torch.empty_like(parameter, requires_grad=False).copy_(values)
