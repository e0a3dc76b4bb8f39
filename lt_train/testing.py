"""Conformance checks for kinds of your own: `check_method`, `check_dataset` and `check_kind`.

Call them from a test of your package:

    def test_poly() -> None:
        check_method(Poly)

Each check raises an `AssertionError` that says what is wrong. They need no data, no GPU and a few seconds.

Shapes: S seeds, B batch, T lanes, K classes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from lt_train.core.fields import lane_values, substitute
from lt_train.core.registry import KindSpec
from lt_train.datasets.base import DatasetSpec, FeatureData, ImageData, Labelled
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.losses import Loss
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run, RunResult

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
      A lane, and an image, does not depend on the others.
    - `retrain.fused` and `retrain.reference` agree within rounding, for runs that differ in seed and batched fields.
      Training again gives the same bits, and so does training a run alone up to rounding.

    Args:
        method: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(method)
    assert isinstance(checked, MethodSpec), f"{type(checked).__name__} is not a method"
    if isinstance(checked, TrainedMethod):
        _check_loss(checked)
    _check_training(checked)


def _check_loss(method: TrainedMethod) -> None:
    name, counts, classes = type(method).__name__, torch.tensor([16, 4, 1]), 3
    seeds, batch, lanes = 2, 5, 3
    stream = torch.Generator().manual_seed(0)
    single = {path: torch.tensor(value, dtype=torch.float64) for path, value in method.lane_values().items()}
    settings = [variant.lane_values() for variant in _variants(method, lanes)]
    several = {
        path: torch.tensor([[[lane[path] for lane in settings]]] * seeds, dtype=torch.float64) for path in single
    }
    try:
        loss, stacked = method.loss(single, counts), method.loss(several, counts)
    except KeyError as error:
        problem = f"{name}.loss uses lanes[{error}], but {name} has no such field that declares BATCHED"
        raise AssertionError(problem) from None
    corners = torch.cartesian_prod(*[torch.tensor([-100.0, 0.0, 100.0])] * classes).double()
    extreme, every = corners.repeat(classes, 1), torch.arange(classes).repeat_interleave(len(corners))
    value = loss(extreme, every)
    assert value.shape == every.shape, f"the loss of {name} must return one value per image, got {tuple(value.shape)}"
    for tensor in (value, *loss.with_gradient(extreme, every)):
        assert bool(tensor.isfinite().all()), f"the loss of {name} or its gradient is not finite for large logits"

    logits = 3 * torch.randn(seeds, batch, lanes, classes, generator=stream, dtype=torch.float64)
    labels = (torch.arange(seeds * batch) % classes).view(seeds, batch, 1)
    before = logits.clone()
    losses, gradients = stacked.with_gradient(logits, labels)
    assert torch.equal(logits, before), f"with_gradient of {name} must not change the logits"
    expected = Loss.with_gradient(stacked, logits, labels)
    _assert_close((losses, gradients), expected, f"with_gradient of {name} is not the gradient of its loss")
    for s in range(seeds):
        for t in range(lanes):
            alone = method.loss({path: value[s, 0, t] for path, value in several.items()}, counts)
            own = alone.with_gradient(logits[s, :, t], labels[s, :, 0])
            _assert_close((losses[s, :, t], gradients[s, :, t]), own, f"a lane of {name} depends on other lanes")
    half = loss(logits[0, :2, 0], labels[0, :2, 0])
    _assert_close((half,), (loss(logits[0, :, 0], labels[0, :, 0])[:2],), f"the loss of {name} depends on other images")


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


def _variants(method: MethodSpec, count: int = 2) -> list[MethodSpec]:
    """The method, and others that differ from it in every batched field, as far as the fields allow it."""
    found = [method]
    for number in range(1, count):
        variant = method
        for path, value in lane_values(method).items():
            smaller, larger = value * (1 - 0.4 * number), value * (1 + 0.4 * number)
            for other in (smaller, larger) if value else (0.2 * number,):
                with contextlib.suppress(ValidationError):
                    variant = substitute(variant, {path: other})
                    break
        found.append(variant)
    return found


def _state(result: RunResult) -> Mapping[str, Any]:
    assert result.kept is not None, "a run that did not fail has a head"
    return result.kept.state


def _assert_same_head(found: RunResult, expected: RunResult, message: str) -> None:
    for key, one in _state(found).items():
        other = _state(expected)[key]
        error = float(abs(one - other).max()) / max(float(abs(other).max()), 0.1)
        assert error < TOLERANCE, f"{message}: {key} by {error:.2g} of its largest value"


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
        test=EvalSet(images(test, 1), test),
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
