"""Conformance checks for kinds of your own: `check_method`, `check_dataset` and `check_kind`.

Call them from a test of your package:

    def test_poly() -> None:
        check_method(Poly)

Each check raises an `AssertionError` that says what is wrong. They need no data, no GPU and a few seconds.

Shapes: S seeds, B batch, T lanes, K classes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor

from lt_train.core.fields import lane_values
from lt_train.core.registry import KindSpec
from lt_train.core.seeding import Step
from lt_train.datasets.base import DatasetSpec, FeatureData, ImageData, Labelled
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.losses import Loss
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec
from lt_train.methods.heads.base import HeadSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run, RunResult, prepared_runs

__all__ = ["check_dataset", "check_kind", "check_method"]

TOLERANCE = 1e-3
"""Largest relative difference between the weights of the two engines after a few epochs, in float32."""


def check_kind(kind: KindSpec | type[KindSpec]) -> KindSpec:
    """Check what every kind must have, and return the instance that was checked.

    The class names its kind, has a docstring and describes its fields; instances are immutable, hashable and the same
    after a round trip through JSON.

    Args:
        kind: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    cls = kind if isinstance(kind, type) else type(kind)
    name = cls.__name__
    if isinstance(kind, type):
        try:
            kind = kind(**{})
        except ValidationError as error:
            problem = f"{name} has fields without valid defaults; pass an instance: {error}"
            raise AssertionError(problem) from None
    assert cls.kind_name(), f'{name} must name its kind: kind: Literal["..."] = "..."'
    assert kind.kind == cls.kind_name(), f"the default of {name}.kind must be {cls.kind_name()!r}"
    assert (cls.__doc__ or "").strip(), f"{name} needs a docstring; its first line is shown by `lt-sweep kinds`"
    for field, info in cls.model_fields.items():
        assert field == "kind" or info.description, f"{name}.{field} needs a description: Field(description=...)"
    text = kind.model_dump_json()
    assert cls.model_validate_json(text) == kind, f"{name} changes in a round trip through JSON: {text}"
    assert json.loads(text)["kind"] == kind.kind
    try:
        hash(kind)
    except TypeError as error:
        raise AssertionError(f"{name} must be hashable, so fields must be immutable: {error}") from None
    return kind


def check_method(method: MethodSpec | type[MethodSpec]) -> None:
    """Check a method: its loss, and that both engines train the same heads with it.

    - `check_kind`.
    - The loss returns one finite value per image, also for logits that differ by 200. `with_gradient` is its gradient.
      A lane does not depend on others, and an image does not, unless the loss declares `over_batch`; the order of the
      images then has no effect.
    - An augmentation returns features of the same shape and does not change its arguments.
    - `retrain.fused` and `retrain.reference` agree within rounding, for runs that differ in seed and batched fields.
      Training again gives the same bits, and so does training a run alone up to rounding.
    - The head has the number of parameters that it declares, and its stored state can be restored.

    Args:
        method: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(method)
    assert isinstance(checked, MethodSpec), f"{type(checked).__name__} is not a method"
    if isinstance(checked, TrainedMethod):
        bank = _bank()
        (run,) = prepared_runs(bank, [Run(checked, TrainingSpec(), 0)])
        assert isinstance(run.method, TrainedMethod), f"{type(checked).__name__}.prepared must return a method"
        _check_loss(run.method, bank.class_counts)
        _check_augmentation(run.method, bank)
    _check_training(checked)


def _check_loss(method: TrainedMethod, counts: Tensor) -> None:
    name, classes = type(method).__name__, len(counts)
    seeds, batch, lanes = 2, 5, 3
    stream = torch.Generator().manual_seed(0)
    settings = [variant.lane_values() for variant in _variants(method, lanes)]
    several = {
        path: torch.tensor([[[lane[path] for lane in settings]]] * seeds, dtype=torch.float64) for path in settings[0]
    }
    try:
        stacked = method.loss(several, counts)
    except KeyError as error:
        problem = f"{name}.loss uses lanes[{error}], but {name} has no such field that declares BATCHED"
        raise AssertionError(problem) from None
    one_run = {path: value[:1, :, :1] for path, value in several.items()}
    _check_large_logits(name, method.loss(one_run, counts), classes)

    logits = 3 * torch.randn(seeds, batch, lanes, classes, generator=stream, dtype=torch.float64)
    labels = (torch.arange(seeds * batch) % classes).view(seeds, batch, 1)
    step, drawn = _Recorded(tuple(range(seeds)), 1, 3, 2, batch), _Recorded.drawn
    drawn.clear()
    of_step, before = stacked.at(step), logits.clone()
    losses, gradients = of_step.with_gradient(logits, labels)
    assert torch.equal(logits, before), f"with_gradient of {name} must not change the logits"
    expected = Loss.with_gradient(of_step, logits, labels)
    _assert_close((losses, gradients), expected, f"with_gradient of {name} is not the gradient of its loss")
    for s in range(seeds):
        for t in range(lanes):
            alone = reference.LossOfRun(method, {path: value[s, 0, t] for path, value in several.items()}, counts)
            leaf = logits[s, :, t].clone().requires_grad_()
            own = alone(leaf, labels[s, :, 0], step.of(s))
            (gradient,) = torch.autograd.grad(own.sum(), leaf)
            found, problem = (losses[s, :, t], gradients[s, :, t]), f"a lane of {name} depends on other lanes or seeds"
            _assert_close(found, (own.detach(), gradient), problem)
    if not stacked.over_batch:
        others = torch.cat([logits[:, :2], -logits[:, 2:]], dim=1)
        problem = f"the loss of {name} depends on other images, but does not declare over_batch"
        _assert_close((of_step(others, labels)[:, :2],), (losses[:, :2],), problem)
    elif not drawn:
        problem = f"the loss of {name} depends on the order of the images in the batch"
        order = torch.tensor([4, 2, 0, 1, 3])
        _assert_close((of_step(logits[:, order], labels[:, order]),), (losses[:, order],), problem)


def _check_large_logits(name: str, loss: Loss, classes: int) -> None:
    """One value per image, finite for logits that differ by 200, also for a batch of one image."""
    corners = torch.cartesian_prod(*[torch.tensor([-100.0, 0.0, 100.0])] * classes).double()
    extreme, every = corners.repeat(classes, 1), torch.arange(classes).repeat_interleave(len(corners))
    for images in (len(every), 1):
        of_step = loss.at(Step((0,), 0, 1, 0, images))
        logits_SBTK, labels_SB1 = extreme[None, :images, None], every[None, :images, None]
        value = of_step(logits_SBTK, labels_SB1)
        shape = tuple(logits_SBTK.shape[:-1])
        problem = f"the loss of {name} must return one value per image, {shape} for logits {(*shape, classes)}"
        assert value.shape == shape, f"{problem}, got {tuple(value.shape)}"
        for tensor in (value, *of_step.with_gradient(logits_SBTK, labels_SB1)):
            assert bool(tensor.isfinite().all()), f"the loss of {name} or its gradient is not finite for large logits"


class _Recorded(Step):
    """A step that records the names of the streams that were used."""

    drawn: ClassVar[list[str]] = []

    def draw(self, name: str, sample: Callable[[torch.Generator, int], Tensor]) -> Tensor:
        self.drawn.append(name)
        return super().draw(name, sample)


def _check_augmentation(method: TrainedMethod, bank: FeatureBank) -> None:
    name, augment = type(method).__name__, method.augmentation(bank.class_counts)
    if augment is None:
        return
    for images in (5, 1):
        given = bank.train_features[0, -images:].clone(), bank.train_labels[-images:].clone()
        found = augment(*given, Step(0, 1, 3, 2, images))
        wanted = bank.train_features[0, -images:]
        assert found.shape == wanted.shape, (
            f"{name}.augmentation returns {tuple(found.shape)} for {tuple(wanted.shape)}"
        )
        assert found.dtype == wanted.dtype, f"{name}.augmentation must return {wanted.dtype}, got {found.dtype}"
        assert bool(found.isfinite().all()), f"{name}.augmentation returns features that are not finite"
        same = torch.equal(given[0], wanted) and torch.equal(given[1], bank.train_labels[-images:])
        assert same, f"{name}.augmentation must not change its arguments"


def _assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], message: str) -> None:
    for one, other in zip(found, expected, strict=True):
        error = "" if one.shape == other.shape else f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
        if not error and not torch.allclose(one, other, rtol=1e-5, atol=1e-8):
            error = f"largest difference {float((one - other).abs().max()):.3g}"
        assert not error, f"{message}: {error}"


def _check_training(method: MethodSpec) -> None:
    name, bank = type(method).__name__, _bank()
    reason = method.incompatibility(bank.class_counts)
    assert not reason, f"{name} refuses a bank with images in every class: {reason}"
    _check_head(method.head, bank)
    training = TrainingSpec(epochs=3, batch_size=32)
    runs = [Run(variant, training, seed) for variant in _variants(method) for seed in (0, 7)]
    found = fused.fit(bank, runs)
    for run, one, expected in zip(runs, found, reference.fit(bank, runs), strict=True):
        setting = f"{name} with {run.method.lane_values()}"
        assert one.failure is None, f"{setting} failed: {one.failure}"
        _assert_same_head(one, expected, f"{setting}: the fused engine differs from the reference")
    for one, again in zip(found, fused.fit(bank, runs), strict=True):
        assert all((state == _state(again)[key]).all() for key, state in _state(one).items()), (
            f"{name}: training again gives other weights; take random numbers from `seeding.generator` only"
        )
    _assert_same_head(found[0], fused.fit(bank, runs[:1])[0], f"{name}: a run depends on the other runs of its pack")


def _check_head(head: HeadSpec, bank: FeatureBank) -> None:
    """What the engines rely on without training: counts, and that a stored state can be restored."""
    name, shape = type(head).__name__, (bank.num_classes, bank.feature_dim)
    start = torch.zeros(shape), torch.zeros(bank.num_classes)
    module = head.module(start, 0)
    values, said = sum(parameter.numel() for parameter in module.parameters()), head.num_parameters(*shape)
    assert said == values, f"{name}.num_parameters must count the parameters of its module, {values}, got {said}"
    said = head.num_activations(*shape)
    assert said >= bank.num_classes, f"{name}.num_activations includes the {bank.num_classes} logits, got {said}"
    try:
        found = head.state_shape(module.state_dict())
    except (KeyError, ValueError) as error:
        problem = f"{name}.state_shape does not find (K, D) in the state of its module, which has no {error}"
        raise AssertionError(problem) from None
    assert found == shape, f"{name}.state_shape must return (K, D) = {shape}, got {found}"


def _variants(method: MethodSpec, count: int = 2) -> list[MethodSpec]:
    """The method, and others that differ from it in every batched field, as far as the fields allow it."""
    found = [method]
    document = method.model_dump(mode="json")
    for number in range(1, count):
        for path, value in lane_values(method).items():
            *parents, field = path.split(".")
            target = document
            for parent in parents:
                target = target[parent]
            smaller, larger = value * (1 - 0.4 * number), value * (1 + 0.4 * number)
            for other in (smaller, larger, value) if value else (0.2 * number, value):
                target[field] = other
                if _is_valid(type(method), document):
                    break
        found.append(type(method).model_validate_json(json.dumps(document)))
    return found


def _is_valid(cls: type[MethodSpec], document: Mapping[str, Any]) -> bool:
    try:
        cls.model_validate_json(json.dumps(document))
    except ValidationError:
        return False
    return True


def _state(result: RunResult) -> Mapping[str, Any]:
    assert result.kept is not None, "a run that did not fail has a head"
    return result.kept.state


def _assert_same_head(found: RunResult, expected: RunResult, message: str) -> None:
    for key, one in _state(found).items():
        other = _state(expected)[key]
        error = float(abs(one - other).max()) / max(float(abs(other).max()), 0.1)
        assert error < TOLERANCE, f"{message}: {key} by {error:.2g} of its largest value"
    assert found.kept is not None, "_state checks it"
    assert expected.kept is not None, "_state checks it"
    error = float(abs(found.kept.loma - expected.kept.loma).max()) / max(float(abs(expected.kept.loma).max()), 0.1)
    assert error < TOLERANCE, f"{message}: LoMa by {error:.2g} of its largest value; is its head affine as it declares?"


def _bank() -> FeatureBank:
    """Four overlapping classes with 60 to 4 training images, and a weak stage-1 head."""
    stream, numbers, dim = torch.Generator().manual_seed(0), torch.tensor([60, 30, 12, 4]), 6
    means = torch.randn(4, dim, generator=stream)

    def images(labels: Tensor, views: int) -> Tensor:
        return means[labels] + 0.9 * torch.randn(views, len(labels), dim, generator=stream)

    train, val, test = (torch.arange(4).repeat_interleave(count) for count in (numbers, 8, 50))
    return FeatureBank(
        fingerprint="conformance",
        train_features=images(train, 2),
        train_labels=train,
        val=EvalSet(images(val, 1), val),
        test=EvalSet(images(test, 2), test),
        head=(0.1 * means, 0.1 * numbers.log()),
        class_counts=numbers,
        split_counts=numbers,
    )


def check_dataset(dataset: DatasetSpec | type[DatasetSpec]) -> None:
    """Check a dataset: what `load` returns, and that it returns the same again.

    Shapes and types are those of `ImageData` or `FeatureData`, labels are 0 .. K-1, every class has training images,
    `split_counts` covers them, and no input is in two parts.

    Args:
        dataset: an instance, or a class whose fields have defaults. The data is loaded twice.

    Raises:
        AssertionError: a requirement is not met.
        DataError: the data cannot be loaded.
    """
    checked = check_kind(dataset)
    assert isinstance(checked, DatasetSpec), f"{type(checked).__name__} is not a dataset"
    name, data, again = type(checked).__name__, checked.load(), checked.load()
    assert isinstance(data, ImageData | FeatureData), f"{name}.load must return ImageData or FeatureData, got {data!r}"
    parts = {part: getattr(data, part) for part in ("train", "val", "test") if getattr(data, part) is not None}
    for part, labelled in parts.items():
        _check_part(f"{name}: {part}", data, labelled)
        assert labelled.digest() == getattr(again, part).digest(), f"{name}: loading again gives another {part} set"
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    assert data.split_counts.shape == (data.num_classes,), f"{name}: split_counts must have one entry per class"
    empty = (counts == 0).nonzero().flatten().tolist()
    assert not empty, f"{name}: classes {empty} have no training image"
    assert bool((data.split_counts >= counts).all()), f"{name}: split_counts must count all training images"
    contents = {part: set(_rows(labelled)) for part, labelled in parts.items()}
    for one, other in itertools.combinations(contents, 2):
        shared = len(contents[one] & contents[other])
        assert not shared, f"{name}: {one} and {other} have {shared} {'input' if shared == 1 else 'inputs'} in common"


def _check_part(name: str, data: ImageData | FeatureData, part: Labelled[Any]) -> None:
    labels, inputs = part.labels, part.inputs
    assert labels.dtype == torch.int64, f"{name}: labels must be int64, got {labels.dtype}"
    assert labels.ndim == 1, f"{name}: labels must have one axis, got shape {tuple(labels.shape)}"
    assert len(labels), f"{name} is empty"
    low, high, last = int(labels.min()), int(labels.max()), data.num_classes - 1
    assert 0 <= low <= high <= last, f"{name}: labels must be in 0 .. {last}, got {low} .. {high}"
    wanted, axes, images = (torch.uint8, 4, 0) if isinstance(data, ImageData) else (torch.float32, 3, 1)
    if isinstance(inputs, Tensor):
        assert inputs.dtype == wanted, f"{name}: inputs must be {wanted}, got {inputs.dtype}"
    assert len(inputs.shape) == axes, f"{name}: inputs must have {axes} axes, got shape {tuple(inputs.shape)}"
    assert inputs.shape[images] == len(labels), f"{name}: {inputs.shape[images]} inputs and {len(labels)} labels"


def _rows(part: Labelled[Any]) -> list[bytes]:
    """The content of every image that is in memory; of features, of the first view."""
    if not isinstance(part.inputs, Tensor):
        return []
    inputs = part.inputs if part.inputs.dtype == torch.uint8 else part.inputs[0]
    return [row.contiguous().numpy().tobytes() for row in inputs]
