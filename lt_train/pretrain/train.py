"""Stage 1: train a backbone and its first head on a long-tailed training set, and keep them as a checkpoint.

The loop is `stage1.loop`'s; what is here is around it. Every epoch ends with a durable state beside the checkpoint, and
so does a long one every few minutes, and an interrupt: a training killed anywhere goes on from the step that was saved
and ends with the very weights an undisturbed one has (same machine, same number of threads). Processes that train
together (`torch.distributed`) each call this; the first writes. Knows backbones, recipes and images; knows nothing of
banks.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lt_train.backbones.base import BackboneSpec, Classifier
from lt_train.backbones.checkpoint import save_checkpoint
from lt_train.core import seeding
from lt_train.core.device import check_precision, repeatable_convolutions
from lt_train.core.errors import UserError, first_line
from lt_train.core.io import check_output, fingerprint
from lt_train.datasets._images.files import ImageFiles
from lt_train.datasets._images.transform import normalise
from lt_train.datasets.base import ImageData
from lt_train.pretrain.base import RecipeSpec
from lt_train.pretrain.loop import Training, accuracy
from lt_train.pretrain.process_group import ProcessGroup
from lt_train.pretrain.state import StateFile, resume_file

__all__ = ["SAVE_EVERY", "Report", "resume_file", "train_backbone"]

Report = Callable[[int, int, str], None]
"""Called as `report(done, total, note)` after every epoch."""

SAVE_EVERY = 10.0
"""Minutes after which a state is saved within an epoch."""

_STATE_VERSION = 2


def train_backbone(
    data: ImageData,
    backbone: BackboneSpec,
    recipe: RecipeSpec,
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    about: Mapping[str, Any] | None = None,
    report: Report | None = None,
    save_every: float = SAVE_EVERY,
    saved: Callable[[Path], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """Train a classifier and write its checkpoint.

    Args:
        data: images; only `train` is trained on, `test` is evaluated once at the end.
        backbone: what to build; freshly initialised from `seed`.
        recipe: loss, schedule and batch size.
        out: the checkpoint file; `resume_file(out)` lies beside it until training ends.
        seed: of initialisation, order and augmentation.
        device: where to train.
        about: what else the checkpoint should say, JSON, such as `{"dataset": {...}}`.
        report: progress.
        save_every: minutes after which the state is saved within an epoch too; 0: after every step.
        saved: called, by the first process, with the state's file whenever it was written.
        stop: asked after every step; once it is true the state is saved and the training ends as by Ctrl-C.

    Returns:
        `out`, which of several processes the first has written. Its document holds `recipe`, `seed`, `mean`, `std`,
        `notes`, `accuracy` (fractions on test by split, null for an empty one) and `curve` (see `Training.curve`)
        beside `about`.

    Raises:
        DataError: an image cannot be read.
        UserError: `out` is a directory, its name is too long, the recipe cannot do with these classes or this device,
            or the backbone with images of this size.
        StorageError: state or checkpoint could not be written; the last state that was is kept.
        KeyboardInterrupt: Ctrl-C (or SIGTERM where it is taken as that), after the step under way was saved; a second
            one does not wait.
    """
    check_output(out)
    ranks = ProcessGroup(device)
    _check_recipe(recipe, data, device, ranks)
    for part in (data.train, data.test, data.val if recipe.val_every else None):
        if part is not None and isinstance(part.inputs, ImageFiles):
            part.inputs.refuse_unreadable()
    report = report or (lambda done, total, note: None)
    with seeding.global_stream(device, "stage1 initialisation", seed):
        classifier = Classifier(backbone, data.train.inputs.shape[1], data.num_classes, recipe.cosine_scale())
    _check_images(classifier, data)
    # Channels last is the layout the convolutions of both CPU and GPU are fastest in.
    classifier.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(classifier, data, recipe, seed, device, ranks)
    state = StateFile(resume_file(out), _identity(data, backbone, recipe, seed, ranks))
    note = _resume(training, state)
    report(training.epoch, recipe.epochs, note)
    with repeatable_convolutions(device), _interrupts(stop) as stopping:
        _run(training, state, report, stopping, save_every, saved or (lambda file: None))
    if ranks.first:
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
    ranks.wait()
    return out


def _run(
    training: Training,
    state: StateFile,
    report: Report,
    stopping: Callable[[], bool],
    save_every: float,
    saved: Callable[[Path], None],
) -> None:
    """All epochs that are left. Nothing that is computed depends on when a state is saved."""
    ranks, last = training.ranks, time.monotonic()

    def save() -> None:
        nonlocal last
        tensors, document = training.state()
        if ranks.first:
            state.save(tensors, document)
            saved(state.path)
        last = time.monotonic()

    def between() -> None:
        due, stop = ranks.agree(training.steps, time.monotonic() - last >= 60 * save_every, stopping())
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
        if ranks.agree(0, stopping())[0]:
            raise KeyboardInterrupt


def _resume(training: Training, state: StateFile) -> str:
    """Take up a state of this very training, if there is one; a note on what was found."""
    found, note = state.load() if training.ranks.first else (None, "")
    if not training.ranks.from_first(found is not None):
        return note
    training.restore(*(found or ({}, {})))
    if training.steps:
        return f"resumed in epoch {training.epoch + 1} after {training.steps} steps"
    return f"resumed after epoch {training.epoch}"


@contextlib.contextmanager
def _interrupts(asked: Callable[[], bool] | None) -> Iterator[Callable[[], bool]]:
    """Have the first Ctrl-C or SIGTERM wait for the end of a step; yields what says that one came, or `asked` does.

    Signals that end the process at once, or are ignored, stay as they are.
    """
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if ours else {}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, interrupt)
    try:
        yield lambda: bool(came) or (asked is not None and asked())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_recipe(recipe: RecipeSpec, data: ImageData, device: str, ranks: ProcessGroup) -> None:
    """Refuse a recipe that has no use for these classes, or asks for what is not there."""
    if reason := recipe.incompatibility(data.class_counts()):
        raise UserError(f"recipe {recipe.kind}: {reason}")
    check_precision(device, recipe.precision)
    if recipe.val_every and data.val is None:
        raise UserError(
            f"recipe {recipe.kind}: val_every is {recipe.val_every}, and this dataset has no validation set; give it "
            "one (val_per_class, val_fraction), or leave val_every out"
        )
    if recipe.sync_batch_norm and ranks.count > 1 and torch.device(device).type != "cuda":
        raise UserError(f"recipe {recipe.kind}: sync_batch_norm needs CUDA devices, and these are {device}")


def _check_images(classifier: Classifier, data: ImageData) -> None:
    """Refuse images that the backbone does not take, before there is anything to lose."""
    images = normalise(data.train.inputs[:2], data.mean, data.std)  # one that is damaged is not the backbone's fault
    try:
        with torch.inference_mode():
            classifier.eval()(images)
    except Exception as error:  # whatever the network's own code raises
        size = " x ".join(map(str, data.train.inputs.shape[1:]))
        raise UserError(
            f"backbone {classifier.spec.kind} cannot be run on images of {size}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _identity(data: ImageData, backbone: BackboneSpec, recipe: RecipeSpec, seed: int, ranks: ProcessGroup) -> str:
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
            "recipe": recipe.identity(workers=ranks.count),
            "seed": seed,
            "ranks": ranks.count,
        }
    )
