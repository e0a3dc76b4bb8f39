"""`check_method`: the loss of a method, and that both engines train the same heads with it.

Shapes: S seeds, B batch, T lanes, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from lt_train.core.fields import lane_values, substitute
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.losses import Loss
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run, RunResult
from lt_train.testing.kinds import assert_close, check_kind

__all__ = ["check_method", "check_training"]

TOLERANCE = 1e-3
"""Largest relative difference between the weights of the two engines after a few epochs, in float32."""


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
    checked = check_kind(method, MethodSpec)
    if isinstance(checked, TrainedMethod):
        _check_loss(checked)
    check_training(checked)


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
    assert_close((losses, gradients), expected, f"with_gradient of {name} is not the gradient of its loss")
    for s in range(seeds):
        for t in range(lanes):
            alone = method.loss({path: value[s, 0, t] for path, value in several.items()}, counts)
            own = alone.with_gradient(logits[s, :, t], labels[s, :, 0])
            assert_close((losses[s, :, t], gradients[s, :, t]), own, f"a lane of {name} depends on other lanes")
    half = loss(logits[0, :2, 0], labels[0, :2, 0])
    assert_close((half,), (loss(logits[0, :, 0], labels[0, :, 0])[:2],), f"the loss of {name} depends on other images")


def check_training(method: MethodSpec) -> None:
    """Check that both engines train the same heads with a method, again and alone.

    Raises:
        AssertionError: they do not.
    """
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
