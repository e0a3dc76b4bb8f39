"""Stage 1: train a backbone and its first head on a long-tailed training set, and keep them as a checkpoint.

The loop is plain; what matters is around it. Every epoch draws from a stream of its own, named by (seed, epoch), and
ends with a durable state beside the checkpoint, so that a training killed anywhere goes on from its last epoch and ends
with the very weights an undisturbed one has (same machine, same number of threads). Knows backbones, recipes and
pictures; knows nothing of banks. Shapes: B batch, N pictures, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lt_train import seeding
from lt_train.backbones.base import BackboneSpec, Classifier
from lt_train.backbones.checkpoint import save_checkpoint
from lt_train.datasets.base import PictureData
from lt_train.datasets.pictures import PictureFiles, read_ahead
from lt_train.datasets.transform import apply_views, draw_views, normalise
from lt_train.errors import UserError, first_line
from lt_train.metrics import SPLITS, correct_per_class, split_accuracy, split_masks
from lt_train.stage1.base import RecipeSpec
from lt_train.storage import atomic_file, check_output, fingerprint
from lt_train.tensor_file import write_tensors

__all__ = ["Report", "resume_file", "train_backbone"]

Report = Callable[[int, int, str], None]
"""Called as `report(done, total, note)` after every epoch."""

_STATE_VERSION = 1
_KEY = "longtail-sweeps training state"
_EVALUATION_BATCH = 500


def train_backbone(
    data: PictureData,
    backbone: BackboneSpec,
    recipe: RecipeSpec,
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    about: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Path:
    """Train a classifier and write its checkpoint.

    Args:
        data: pictures; only `train` is trained on, `test` is evaluated once at the end.
        backbone: what to build; freshly initialised from `seed`.
        recipe: loss, schedule and batch size.
        out: the checkpoint file; `resume_file(out)` lies beside it until training ends.
        seed: of initialisation, order and augmentation.
        device: where to train.
        about: what else the checkpoint should say, JSON, such as `{"dataset": {...}}`.
        report: progress.

    Returns:
        `out`. Its document holds `recipe`, `seed`, `mean`, `std`, `notes` and `accuracy` (fractions on test by split,
        null for an empty one) beside `about`.

    Raises:
        DataError: a picture cannot be read.
        UserError: `out` is a directory, its name is too long, the recipe cannot do with these classes, or the
            backbone with pictures of this size.
        StorageError: state or checkpoint could not be written; the last finished epoch is kept.
    """
    check_output(out)
    if reason := recipe.unfit(data.class_counts()):
        raise UserError(f"recipe {recipe.kind}: {reason}")
    for part in (data.train.inputs, data.test.inputs):
        if isinstance(part, PictureFiles):
            part.refuse_unreadable()
    report = report or (lambda done, total, note: None)
    with seeding.global_stream(device, "stage1 initialisation", seed):
        classifier = Classifier(backbone, data.train.inputs.shape[1], data.num_classes, recipe.cosine_scale())
    _check_pictures(classifier, data)
    # Channels last is the layout the convolutions of both CPU and GPU are fastest in.
    classifier.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        classifier.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    state = _State(resume_file(out), classifier, optimiser, _identity(data, backbone, recipe, seed))
    first, note = state.load()
    report(first, recipe.epochs, note)
    for epoch in range(first, recipe.epochs):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate(epoch)
        with seeding.global_stream(device, "stage1 network", seed, epoch):
            loss = _train_epoch(classifier, optimiser, data, recipe, seed, epoch, device)
        state.save(epoch)
        report(epoch + 1, recipe.epochs, f"loss {loss:.3f}")
    document = {
        **(about or {}),
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "mean": list(data.mean),
        "std": list(data.std),
        "notes": list(data.notes),
        "accuracy": _accuracy(classifier, data, device),
    }
    save_checkpoint(out, classifier, document)
    state.remove()
    return out


def resume_file(out: Path) -> Path:
    """Where the state of an unfinished training of `out` lies."""
    return out.with_name(out.name + ".resume")


def _check_pictures(classifier: Classifier, data: PictureData) -> None:
    """Refuse pictures that the backbone does not take, before there is anything to lose."""
    try:
        with torch.inference_mode():
            classifier.eval()(normalise(data.train.inputs[:2], data.mean, data.std))
    except Exception as error:  # whatever the network's own code raises
        size = " x ".join(map(str, data.train.inputs.shape[1:]))
        raise UserError(
            f"backbone {classifier.spec.kind} cannot be run on pictures of {size}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _train_epoch(
    classifier: Classifier,
    optimiser: torch.optim.Optimizer,
    data: PictureData,
    recipe: RecipeSpec,
    seed: int,
    epoch: int,
    device: str,
) -> float:
    """One pass over the training set in a fresh order and freshly augmented; the mean loss."""
    stream = seeding.generator("stage1 epoch", seed, epoch)
    order = torch.randperm(len(data.train), generator=stream)
    views = draw_views(len(data.train), data.augmentation, stream)
    class_counts = data.class_counts().to(device)
    total = torch.zeros((), device=device)
    classifier.train()
    # Batch norm has no variance to speak of in a batch of one.
    batches = [chosen for chosen in order.split(recipe.batch_size) if len(chosen) > 1]
    for chosen, read in zip(batches, read_ahead(data.train.inputs, batches), strict=True):
        pictures = apply_views(read, views[chosen], data.augmentation.pad).to(device)
        inputs = normalise(pictures, data.mean, data.std).contiguous(memory_format=torch.channels_last)
        losses = recipe.loss(classifier(inputs), data.train.labels[chosen].to(device), class_counts, epoch)
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        total += losses.detach().sum()
    return float(total) / len(order)


def _accuracy(classifier: Classifier, data: PictureData, device: str) -> dict[str, float | None]:
    """Top-1 on the test set by split, null for an empty one."""
    classifier.eval()
    correct = torch.zeros(data.num_classes)
    with torch.inference_mode():
        for start in range(0, len(data.test), _EVALUATION_BATCH):
            batch = slice(start, start + _EVALUATION_BATCH)
            logits = classifier(normalise(data.test.inputs[batch].to(device), data.mean, data.std))
            correct += correct_per_class(logits.cpu(), data.test.labels[batch], data.num_classes)
    total = torch.bincount(data.test.labels, minlength=data.num_classes)
    accuracy = split_accuracy(correct, total, split_masks(data.split_counts)).tolist()
    return {split: None if value != value else value for split, value in zip(SPLITS, accuracy, strict=True)}


def _identity(data: PictureData, backbone: BackboneSpec, recipe: RecipeSpec, seed: int) -> str:
    """Hash of everything that decides the weights: a state of another training must not be continued."""
    return fingerprint(
        {
            "version": _STATE_VERSION,
            "train": data.train.digest(),
            "num_classes": data.num_classes,
            "mean": data.mean,
            "std": data.std,
            "augmentation": data.augmentation.model_dump(),
            "backbone": backbone.model_dump(mode="json", exclude={"checkpoint"}),
            "recipe": recipe.model_dump(mode="json"),
            "seed": seed,
        }
    )


class _State:
    """The durable state of a training: weights, buffers, momentum and the last finished epoch in one file."""

    def __init__(self, file: Path, classifier: Classifier, optimiser: torch.optim.SGD, identity: str) -> None:
        self.file, self.classifier, self.optimiser, self.identity = file, classifier, optimiser, identity

    def save(self, epoch: int) -> None:
        """Replace the file by the state after `epoch`."""
        tensors = {f"model.{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        for name, parameter in self.classifier.named_parameters():
            buffer = self.optimiser.state[parameter].get("momentum_buffer")
            if buffer is not None:  # there is none without momentum, or for what the loss does not reach
                tensors[f"momentum.{name}"] = buffer
        metadata = {_KEY: json.dumps({"identity": self.identity, "epoch": epoch})}
        with atomic_file(self.file) as temporary:
            write_tensors(temporary, tensors, metadata)

    def load(self) -> tuple[int, str]:
        """Take up a state of this very training, if there is one: the epoch to begin with, and a note."""
        if not self.file.is_file():
            return 0, ""
        try:
            with safe_open(self.file, framework="pt") as contents:
                about = json.loads((contents.metadata() or {}).get(_KEY, "{}"))
                if not isinstance(about, dict) or about.get("identity") != self.identity:
                    return 0, f"{self.file} is of another training and is ignored"
                tensors = {name: contents.get_tensor(name) for name in contents.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            return 0, f"{self.file} cannot be read ({error}) and is ignored"
        self.classifier.load_state_dict(
            {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        )
        for name, parameter in self.classifier.named_parameters():
            if (buffer := tensors.get(f"momentum.{name}")) is not None:
                self.optimiser.state[parameter]["momentum_buffer"] = _like(parameter, buffer)
        first = int(about["epoch"]) + 1
        return first, f"resumed after epoch {first}"

    def remove(self) -> None:
        """Training is over and its checkpoint written."""
        self.file.unlink(missing_ok=True)


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """`values` on the device and in the memory layout of `parameter`, so that the update takes the same code path."""
    return torch.empty_like(parameter, requires_grad=False).copy_(values)
