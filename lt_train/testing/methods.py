"""`check_method`: the loss of a method, and that both engines train the same heads with it.

Shapes: S seeds, B batch, T lanes, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from lt_train.core.fields import lane_values, substitute
from lt_train.core.seeding import Step
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.losses import Loss
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec
from lt_train.methods.heads.base import HeadSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run, RunResult, prepared_runs
from lt_train.testing.kinds import assert_close, check_kind

__all__ = ["check_method", "check_training"]

MethodT = TypeVar("MethodT", bound=MethodSpec)

TOLERANCE = 1e-3
"""Largest relative difference between the weights of the two engines after a few epochs, in float32."""


def check_method(method: MethodSpec | type[MethodSpec]) -> None:
    """Check a method: its loss, and that both engines train the same heads with it.

    - `check_kind`.
    - The loss returns one finite value per image, also for logits that differ by 200, and where a field is at a bound
      (`ge`, `le`). `with_gradient` is its gradient.
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
    checked = check_kind(method, MethodSpec)
    if isinstance(checked, TrainedMethod):
        bank = _bank()
        (run,) = prepared_runs(bank, [Run(checked, TrainingSpec(), 0)])
        assert isinstance(run.method, TrainedMethod), f"{type(checked).__name__}.prepared must return a method"
        _check_loss(run.method, bank.class_counts)
        _check_augmentation(run.method, bank)
    check_training(checked)


def _check_loss(method: TrainedMethod, counts: Tensor) -> None:
    name, classes = type(method).__name__, len(counts)
    seeds, batch, lanes = 2, 5, 3
    stream = torch.Generator().manual_seed(0)
    variants = _variants(method, lanes)
    settings = [variant.lane_values() for variant in variants]
    several = {
        path: torch.tensor([[[lane[path] for lane in settings]]] * seeds, dtype=torch.float64) for path in settings[0]
    }
    try:
        stacked = method.loss(several, counts)
    except KeyError as error:
        problem = f"{name}.loss uses lanes[{error}], but {name} has no such field that declares BATCHED"
        raise AssertionError(problem) from None
    for limit in [method, *_at_bounds(method)]:
        one_run = {
            path: torch.full((1, 1, 1), value, dtype=torch.float64) for path, value in limit.lane_values().items()
        }
        at = "" if limit is method else f" at {limit.lane_values()}"
        _check_large_logits(f"{name}{at}", limit.loss(one_run, counts), classes)

    logits = 3 * torch.randn(seeds, batch, lanes, classes, generator=stream, dtype=torch.float64)
    labels = (torch.arange(seeds * batch) % classes).view(seeds, batch, 1)
    step, drawn = _Recorded(tuple(range(seeds)), 1, 3, 2, batch), _Recorded.drawn
    drawn.clear()
    of_step, before = stacked.at(step), logits.clone()
    losses, gradients = of_step.with_gradient(logits, labels)
    assert torch.equal(logits, before), f"with_gradient of {name} must not change the logits"
    expected = Loss.with_gradient(of_step, logits, labels)
    assert_close((losses, gradients), expected, f"with_gradient of {name} is not the gradient of its loss")
    for s in range(seeds):
        for t in range(lanes):
            own_lanes = {path: value[s, 0, t] for path, value in several.items()}
            alone = reference.LossOfRun(variants[t], own_lanes, counts)
            leaf = logits[s, :, t].clone().requires_grad_()
            own = alone(leaf, labels[s, :, 0], step.of(s))
            (gradient,) = torch.autograd.grad(own.sum(), leaf)
            found = losses[s, :, t], gradients[s, :, t]
            problem = f"a lane of {name} depends on other lanes or seeds, or its loss reads a field instead of `lanes`"
            assert_close(found, (own.detach(), gradient), problem)
    if not stacked.over_batch:
        others = torch.cat([logits[:, :2], -logits[:, 2:]], dim=1)
        problem = f"the loss of {name} depends on other images, but does not declare over_batch"
        assert_close((of_step(others, labels)[:, :2],), (losses[:, :2],), problem)
    elif not drawn:
        problem = f"the loss of {name} depends on the order of the images in the batch"
        order = torch.tensor([4, 2, 0, 1, 3])
        assert_close((of_step(logits[:, order], labels[:, order]),), (losses[:, order],), problem)


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


def check_training(method: MethodSpec) -> None:
    """Check that both engines train the same heads with a method, again and alone.

    Raises:
        AssertionError: they do not.
    """
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


def _variants(method: MethodT, count: int = 2) -> list[MethodT]:
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


def _at_bounds(method: TrainedMethod) -> list[TrainedMethod]:
    """The method with a batched field of its own at a bound that belongs to its range; one for each."""
    found = []
    for name, field in type(method).model_fields.items():
        bounds = [getattr(mark, end) for mark in field.metadata for end in ("ge", "le") if hasattr(mark, end)]
        for bound in bounds if name in method.lane_values() else ():
            with contextlib.suppress(ValidationError):
                found.append(substitute(method, {name: float(bound)}))
    return found


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
