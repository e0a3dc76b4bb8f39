"""Stage 1: train a backbone and its first head on a long-tailed training set and write a checkpoint.

`pretrain.loop` is the training loop; this module checks the inputs, saves and resumes. A durable state, one safetensors
file beside the checkpoint, is replaced after every epoch, every few minutes within a long one, and on interrupt. Only
the training that wrote it, recognised by its identity, resumes from it, and only if its content matches the digest in
it; a damaged file is renamed to `<name>.damaged` and training starts over. A training that was killed resumes from the
saved step and ends with exactly the weights of an undisturbed one (on the same machine with the same number of
threads). Processes that train together (`torch.distributed`) each call `train_backbone`; rank 0 writes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lt_train.backbones.base import BackboneSpec
from lt_train.backbones.checkpoint import save_checkpoint
from lt_train.backbones.layers import Classifier
from lt_train.core import seeding
from lt_train.core.device import check_precision, repeatable_convolutions
from lt_train.core.errors import UserError, first_line
from lt_train.core.io import (
    atomic_file,
    check_output,
    digest_tensors,
    fingerprint,
    parse_json,
    set_aside,
    write_tensors,
)
from lt_train.core.text import ProgressCallback
from lt_train.datasets._images.files import ImageFiles
from lt_train.datasets._images.transform import normalise
from lt_train.datasets.base import ImageData
from lt_train.pretrain.loop import ProcessGroup, Training, accuracy
from lt_train.pretrain.recipes import RecipeSpec

__all__ = ["resume_file", "train_backbone"]


_KEY = "longtail-sweeps training state"

logger = logging.getLogger(__name__)


def resume_file(out: Path) -> Path:
    """The path of the state file of an unfinished training of `out`."""
    return out.with_name(out.name + ".resume")


@dataclass(frozen=True)
class StateFile:
    """The state file of one training; `identity` is the hash of everything that determines its weights."""

    path: Path
    identity: str

    def save(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Replace the file atomically.

        Raises:
            StorageError: it could not be written; the previous file is kept.
        """
        about = {"identity": self.identity, "state": document}
        metadata = {_KEY: json.dumps(about | {"digest": digest_tensors(about, tensors)})}
        with atomic_file(self.path) as temporary:
            write_tensors(temporary, tensors, metadata)

    def load(self) -> tuple[tuple[dict[str, Tensor], dict[str, Any]] | None, str]:
        """The saved state, or None if there is none of this training, and the reason why a file was ignored.

        A damaged file is set aside with a warning.

        Raises:
            StorageError: it could not be renamed.
        """
        if not self.path.exists():
            return None, ""
        if not self.path.is_file():
            return None, self._set_aside("is not a file")
        try:
            with safe_open(self.path, framework="pt") as contents:
                about = parse_json((contents.metadata() or {}).get(_KEY, "{}"))
                if not isinstance(about, dict) or "digest" not in about:
                    return None, self._set_aside("is altered or was written by another version")
                tensors = {name: contents.get_tensor(name) for name in contents.keys()}
            if about.pop("digest") != digest_tensors(about, tensors):
                return None, self._set_aside("is altered: its content does not match the digest in it")
        except (SafetensorError, OSError, ValueError) as error:
            return None, self._set_aside(f"cannot be read ({error})")
        if about["identity"] != self.identity:
            return None, f"{self.path} belongs to another training and is ignored"
        return (tensors, about["state"]), ""

    def _set_aside(self, reason: str) -> str:
        place = set_aside(self.path)
        logger.warning("%s %s; it is kept as %s, and training starts over", self.path, reason, place.name)
        return f"{self.path} {reason} and is ignored"

    def remove(self) -> None:
        """Delete the file, once the checkpoint is written."""
        self.path.unlink(missing_ok=True)


SAVE_EVERY = 10.0
"""Minutes between two saves of the state within an epoch."""

_STATE_VERSION = 3


def train_backbone(
    data: ImageData,
    backbone: BackboneSpec,
    recipe: RecipeSpec,
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    about: Mapping[str, Any] | None = None,
    report: ProgressCallback | None = None,
    save_every: float = SAVE_EVERY,
    saved: Callable[[Path], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """Train a classifier and write its checkpoint.

    Args:
        data: images; `train` is trained on, `test` is evaluated once at the end.
        backbone: the network to build, initialised from `seed`.
        recipe: loss, schedule and batch size.
        out: the checkpoint file; `resume_file(out)` is kept beside it until training ends.
        seed: for initialisation, order and augmentation.
        device: where to train.
        about: further entries for the checkpoint's document, JSON, such as `{"dataset": {...}}`.
        report: called after every epoch.
        save_every: minutes between two saves of the state within an epoch; 0: after every step.
        saved: called on rank 0 with the path of the state file after every save.
        stop: called after every step; once it returns True the state is saved and the training ends as by Ctrl-C.

    Returns:
        `out`, written by rank 0. Its document holds `recipe`, `seed`, `mean`, `std`, `notes`, `accuracy` (fractions on
        test by split, null for an empty split) and `curve` (see `Training.curve`) in addition to `about`.

    Raises:
        DataError: an image cannot be read.
        UserError: `out` is a directory or its name is too long, the recipe does not support these classes or this
            device, or the backbone does not support images of this size.
        StorageError: state or checkpoint could not be written; the last written state is kept.
        KeyboardInterrupt: Ctrl-C (or SIGTERM where it raises this), after the current step was saved; a second one
            interrupts at once.
    """
    check_output(out)
    group = ProcessGroup(device)
    _check_recipe(recipe, data, device, group)
    for part in (data.train, data.test, data.val if recipe.val_every else None):
        if part is not None and isinstance(part.inputs, ImageFiles):
            part.inputs.refuse_unreadable()
    report = report or (lambda done, total, note: None)
    with seeding.global_stream(device, "stage1 initialisation", seed):
        classifier = Classifier(backbone, data.train.inputs.shape[1], data.num_classes, recipe.cosine_scale())
    _check_images(classifier, data)
    # Convolutions are fastest in this layout, on CPU and GPU.
    classifier.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(classifier, data, recipe, seed, device, group)
    state = StateFile(resume_file(out), _identity(data, backbone, recipe, seed, group))
    note = _resume(training, state)
    report(training.epoch, recipe.epochs, note)
    with repeatable_convolutions(device), _interrupts(stop) as stopping:
        _run(training, state, report, stopping, save_every, saved or (lambda file: None))
    if group.is_main:
        document = {
            **(about or {}),
            "recipe": recipe.model_dump(mode="json"),
            "seed": seed,
            "mean": list(data.mean),
            "std": list(data.std),
            "notes": list(data.notes),
            "accuracy": accuracy(classifier, data.test, data, device),
            "curve": training.curve,
        }
        save_checkpoint(out, classifier, document)
        state.remove()
    group.barrier()
    return out


def _run(
    training: Training,
    state: StateFile,
    report: ProgressCallback,
    stopping: Callable[[], bool],
    save_every: float,
    saved: Callable[[Path], None],
) -> None:
    """Train all remaining epochs. When states are saved does not affect any result."""
    group, last = training.group, time.monotonic()

    def save() -> None:
        nonlocal last
        tensors, document = training.state()
        if group.is_main:
            state.save(tensors, document)
            saved(state.path)
        last = time.monotonic()

    def between() -> None:
        due, stop = group.any_rank(training.steps, time.monotonic() - last >= 60 * save_every, stopping())
        if due or stop:
            save()
        if stop:
            raise KeyboardInterrupt

    training.begin()
    epochs = training.recipe.epochs
    while training.epoch < epochs:
        loss = training.run_epoch(between)
        save()
        report(training.epoch, epochs, f"loss {loss:.3f}")
        if group.any_rank(0, stopping())[0]:
            raise KeyboardInterrupt


def _resume(training: Training, state: StateFile) -> str:
    """Restore the saved state of this training, if there is one; returns a note on what was found."""
    found, note = state.load() if training.group.is_main else (None, "")
    if not training.group.broadcast(found is not None):
        return note
    training.restore(*(found or ({}, {})))
    if training.steps:
        return f"resumed in epoch {training.epoch + 1} after {training.steps} steps"
    return f"resumed after epoch {training.epoch}"


@contextlib.contextmanager
def _interrupts(stop: Callable[[], bool] | None) -> Iterator[Callable[[], bool]]:
    """Defer the first Ctrl-C or SIGTERM to the end of a step; yields a function that returns whether to stop.

    That is the case after a signal, or once `stop` returns True. Signals that end the process at once or are ignored
    keep their handlers.
    """
    received: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main_thread else {}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, interrupt)
    try:
        yield lambda: bool(received) or (stop is not None and stop())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_recipe(recipe: RecipeSpec, data: ImageData, device: str, group: ProcessGroup) -> None:
    """Refuse a recipe that does not support these classes, this device or this dataset."""
    if reason := recipe.incompatibility(data.class_counts()):
        raise UserError(f"recipe {recipe.kind}: {reason}")
    check_precision(device, recipe.precision)
    if recipe.val_every and data.val is None:
        raise UserError(
            f"recipe {recipe.kind}: val_every is {recipe.val_every}, but this dataset has no validation set; set "
            "val_per_class or val_fraction on the dataset, or remove val_every"
        )
    if recipe.sync_batch_norm and group.count > 1 and torch.device(device).type != "cuda":
        raise UserError(f"recipe {recipe.kind}: sync_batch_norm needs CUDA devices, got {device}; set it to false")


def _check_images(classifier: Classifier, data: ImageData) -> None:
    """Refuse images that the backbone cannot process, before training starts."""
    # Outside the try: a damaged image is not the backbone's fault.
    images = normalise(data.train.inputs[:2], data.mean, data.std)
    try:
        with torch.inference_mode():
            classifier.eval()(images)
    except Exception as error:  # the network's own code may raise anything
        size = " x ".join(map(str, data.train.inputs.shape[1:]))
        raise UserError(
            f"backbone {classifier.spec.kind} cannot be run on images of {size}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _identity(data: ImageData, backbone: BackboneSpec, recipe: RecipeSpec, seed: int, group: ProcessGroup) -> str:
    """Hash of everything that determines the weights; the state of another training must not be resumed."""
    return fingerprint(
        {
            "version": _STATE_VERSION,
            "train": data.train.digest(),
            "num_classes": data.num_classes,
            "mean": data.mean,
            "std": data.std,
            "augmentation": data.augmentation.model_dump(),
            "backbone": backbone.model_dump(mode="json", exclude={"checkpoint"}),
            "recipe": recipe.identity(workers=group.count),
            "seed": seed,
            "ranks": group.count,
        }
    )
