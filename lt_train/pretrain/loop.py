"""The training loop of stage 1: a network, its optimiser and the training's progress, resumable after any step.

Order, augmentation and dropout are drawn from random streams named by (seed, epoch) and (seed, epoch, step). The state
therefore consists of epoch, step, weights, momentum and sums; no generator's state is saved. With several ranks each
trains on its slice of the batches that a single process would have. The ranks are the processes of an initialised
`torch.distributed` group; without one there is one process, and nothing is communicated. The caller launches the
processes.

Shapes: N images, B images in the batch of all ranks, R ranks, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lt_train.backbones.layers import Classifier
from lt_train.core import seeding
from lt_train.datasets._images.files import Images, read_ahead
from lt_train.datasets._images.transform import View, draw_views, normalise
from lt_train.datasets.base import ImageData, Labelled
from lt_train.metrics import SPLITS, correct_per_class, split_accuracy, split_masks, top1_correct
from lt_train.pretrain.recipes import RecipeSpec

__all__ = ["ProcessGroup", "Training", "accuracy"]


_STEPS_BETWEEN_SYNCS = 20
"""Steps between two exchanges of flags: on a GPU each exchange waits for the device."""


class ProcessGroup:
    """This process, `rank` among `count`; rank 0 is the main process, which writes files and reports progress."""

    def __init__(self, device: str) -> None:
        self.device = device
        distributed_run = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if distributed_run else 1
        self.rank = distributed.get_rank() if distributed_run else 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    @property
    def stream_suffix(self) -> tuple[int, ...]:
        """What to append to the name of a random stream; empty on rank 0, which draws what a single process draws."""
        return (self.rank,) if self.rank else ()

    def share(self, size: int) -> slice:
        """This rank's part of a batch of B images; the whole batch where a rank would get fewer than two images.

        Batch norm needs at least two images. Where the batch is not split, every rank computes the same.
        """
        if self.splits(size):
            part, larger = divmod(size, self.count)
            start = self.rank * part + min(self.rank, larger)
            return slice(start, start + part + (self.rank < larger))
        return slice(0, size)

    def splits(self, size: int) -> bool:
        """Whether a batch of B images is divided among the ranks instead of being computed by each of them."""
        return self.count > 1 and size >= 2 * self.count

    def wrap(self, network: nn.Module, *, sync_batch_norm: bool) -> nn.Module:
        """The network to train: gradients are averaged over ranks; initial weights and buffers are those of rank 0."""
        if self.count == 1:
            return network
        if sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [torch.cuda.current_device()] if torch.device(self.device).type == "cuda" else None
        # An imported model may have layers that do not contribute to the loss.
        return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=True)

    def any_rank(self, step: int, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any rank raised it; False without communication except at every 20th step."""
        if self.count == 1:
            return flags
        if step % _STEPS_BETWEEN_SYNCS:
            return (False,) * len(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return tuple(map(bool, raised.tolist()))

    def all_gather(self, values: Tensor) -> Tensor:
        """`[R, ...]`: the values of every rank, in order."""
        if self.count == 1:
            return values[None]
        parts = [torch.empty_like(values) for _ in range(self.count)]
        distributed.all_gather(parts, values)
        return torch.stack(parts)

    def broadcast(self, document: Any) -> Any:
        """The document of rank 0."""
        if self.count == 1:
            return document
        shared = [document]
        distributed.broadcast_object_list(shared, device=torch.device(self.device))
        return shared[0]

    def broadcast_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of rank 0 by name, on the device; those of other ranks are ignored."""
        if self.count == 1:
            return tensors
        shapes = self.broadcast({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        received = {}
        for name, (shape, dtype) in shapes.items():
            if self.is_main:
                received[name] = tensors[name].to(self.device).contiguous()
            else:
                received[name] = torch.empty(shape, dtype=dtype, device=self.device)
            distributed.broadcast(received[name], 0)
        return received

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.count > 1:
            distributed.barrier()


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
