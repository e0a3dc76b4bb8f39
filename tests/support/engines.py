"""Runs for both engines, and comparisons of their results.

Assertions here are rewritten by pytest (see the `conftest.py` of the suites), so that a failure shows the values.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Protocol

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.compositions import DEFAULTS, variants

from lt_train.features.bank import FeatureBank
from lt_train.methods.base import METHODS, MethodSpec, TrainingSpec
from lt_train.metrics import split_masks
from lt_train.retrain import fused, reference
from lt_train.retrain.base import EpochSelection, Halving, Run, RunResult, SelectedHead

__all__ = [
    "ENGINES",
    "Engine",
    "agree",
    "assert_same",
    "distance",
    "every_engine",
    "everything",
    "kept",
    "lone_run",
    "make_runs",
    "predict",
    "stack_bytes",
    "trained",
    "with_method",
]


class Engine(Protocol):
    """The signature of both engines."""

    def __call__(
        self,
        bank: FeatureBank,
        runs: Sequence[Run],
        device: str = "cpu",
        rule: EpochSelection | None = None,
        halving: Halving | None = None,
    ) -> list[RunResult]:
        """Train every run on `bank`; results in the order of `runs`."""


Floats = NDArray[np.float32]

ENGINES: dict[str, Engine] = {"reference": reference.fit, "fused": fused.fit}
every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())

SEEDS = (0, 7, 0, 123456789, 7, 0, 5, 5)


def make_runs(
    method: MethodSpec | str,
    *,
    epochs: int = 5,
    batch_size: int = 64,
    seeds: Sequence[int] = SEEDS,
    alike: Sequence[str] = (),
) -> list[Run]:
    """Runs of one method that differ in every lane value not in `alike`; a name stands for the method's defaults.

    By default eight runs of four seeds with 3, 2, 2 and 1 lanes, not sorted: stacks of one seed and of two.
    """
    base = DEFAULTS[method] if isinstance(method, str) else method
    training = TrainingSpec(epochs=epochs, batch_size=batch_size)
    settings = variants(base, len(seeds), alike=alike)
    return [Run(setting, training, seed) for setting, seed in zip(settings, seeds, strict=True)]


def lone_run(document: dict[str, object], *, epochs: int = 1, batch_size: int = 64, seed: int = 0) -> Run:
    """One run of a method given as a user writes it."""
    return Run(METHODS.parse(document), TrainingSpec(epochs=epochs, batch_size=batch_size), seed)


def kept(result: RunResult) -> SelectedHead:
    """The selected head of a run that must not have failed."""
    assert result.failure is None
    assert result.kept is not None
    return result.kept


def trained(run: Run, head: SelectedHead) -> Floats:
    """The trained parameters of a head as one vector; frozen ones would hide a difference."""
    state = {name: torch.from_numpy(array) for name, array in head.state.items()}
    parameters = run.method.classifier(state).named_parameters()
    return np.concatenate([parameter.detach().numpy().ravel() for _, parameter in parameters])


def distance(found: Floats, expected: Floats) -> float:
    """Relative distance of two arrays as vectors."""
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def assert_same(
    bank: FeatureBank, run: Run, found: RunResult, expected: RunResult, tolerance: float, rule: EpochSelection
) -> None:
    """Equal up to rounding: `tolerance` relative in the weights, one image in the accuracies."""
    assert (found.failure, found.stopped) == (expected.failure, expected.stopped)
    curves_equal = _assert_same_curves(bank, found, expected)
    assert (found.kept is None) == (expected.kept is None) == (expected.failure is not None)
    if found.kept is None or expected.kept is None:
        return
    # One image may change the best epoch; where the curves agree, the epoch must agree.
    if curves_equal or rule.epoch == "last":
        assert found.kept.epoch == expected.kept.epoch
    if found.kept.epoch == expected.kept.epoch:
        _assert_same_head(bank, run, found.kept, expected.kept, tolerance)


def _assert_same_curves(bank: FeatureBank, found: RunResult, expected: RunResult) -> bool:
    """Whether the accuracies are exactly equal; fails if they differ by more than one image."""
    counts = torch.bincount(bank.test.labels, minlength=bank.num_classes).float()
    one_image = 1.01 / (split_masks(bank.split_counts).float() @ counts).clamp(min=1).numpy()
    assert found.test_accuracy.shape == expected.test_accuracy.shape
    np.testing.assert_array_equal(np.isnan(found.test_accuracy), np.isnan(expected.test_accuracy))
    assert (np.nan_to_num(np.abs(found.test_accuracy - expected.test_accuracy)) <= one_image).all()
    np.testing.assert_allclose(found.train_loss, expected.train_loss, rtol=1e-4)
    assert (found.val_accuracy is None) == (expected.val_accuracy is None) == (bank.val is None)
    equal = np.array_equal(found.test_accuracy, expected.test_accuracy, equal_nan=True)
    if found.val_accuracy is None or expected.val_accuracy is None or bank.val is None:
        return equal
    images = np.bincount(bank.val.labels.numpy(), minlength=bank.num_classes)
    np.testing.assert_allclose(found.val_accuracy, expected.val_accuracy, atol=1.01 / max(images.min(), 1), rtol=0)
    return equal and np.array_equal(found.val_accuracy, expected.val_accuracy, equal_nan=True)


def _assert_same_head(
    bank: FeatureBank, run: Run, found: SelectedHead, expected: SelectedHead, tolerance: float
) -> None:
    assert found.state.keys() == expected.state.keys()
    for name, array in expected.state.items():
        assert found.state[name].shape == array.shape, name
        assert found.state[name].dtype == array.dtype, name
        # A lower bound for tensors that start at 0 and hardly move.
        size = max(float(np.linalg.norm(array)), 1e-3)
        assert float(np.linalg.norm(found.state[name] - array)) <= tolerance * size, name
    np.testing.assert_allclose(found.loma, expected.loma, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.regularised_std, expected.regularised_std, rtol=1e-3, atol=1e-4)
    images = np.bincount(bank.test.labels.numpy(), minlength=bank.num_classes)
    np.testing.assert_allclose(found.class_accuracy, expected.class_accuracy, atol=1.01 / max(images.min(), 1))
    logits, wanted = (predict(bank, run, head) for head in (found, expected))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=10 * tolerance * max(float(wanted.std()), 1e-3))
    moved = (logits.argmax(axis=-1) != wanted.argmax(axis=-1)).sum()
    assert moved <= len(logits) / 1000


@torch.no_grad()
def predict(bank: FeatureBank, run: Run, head: SelectedHead) -> Floats:
    """Logits `[N, K]` of the test set, averaged over views, by the classifier of a result."""
    classifier = run.method.classifier({name: torch.from_numpy(array) for name, array in head.state.items()})
    logits: Floats = classifier(bank.test.features).mean(dim=0).numpy()
    return logits


def agree(
    bank: FeatureBank,
    runs: Sequence[Run],
    rule: EpochSelection | None = None,
    halving: Halving | None = None,
    *,
    device: str = "cpu",
) -> list[RunResult]:
    """The fused engine's results on a device; fails if they are not the reference's on the CPU."""
    rule = rule or EpochSelection()
    expected = reference.fit(bank, runs, rule=rule, halving=halving)
    results = fused.fit(bank, runs, device, rule, halving)
    for run, found, wanted in zip(runs, results, expected, strict=True):
        assert_same(bank, run, found, wanted, 1e-4, rule)
    return results


def everything(result: RunResult) -> list[object]:
    """All contents of a result as comparable bytes."""
    arrays = [result.val_accuracy, result.test_accuracy, result.train_loss]
    head = [] if result.kept is None else [getattr(result.kept, field.name) for field in fields(result.kept)]
    state = head.pop() if head else {}
    assert isinstance(state, dict), "state is the last field of SelectedHead"
    parts = [*arrays, *head, *state.values()]
    return [result.failure, result.stopped, *state, *(p.tobytes() if isinstance(p, np.ndarray) else p for p in parts)]


def stack_bytes(bank: FeatureBank, run: Run, lanes: int) -> dict[str, int]:
    """`fused.STACK_BYTES` for which at most `lanes` of such runs fit into a stack."""
    head, shape = run.method.head, (bank.num_classes, bank.feature_dim)
    numbers = head.num_parameters(*shape) + run.training.batch_size * head.num_activations(*shape)
    return {"cpu": 4 * numbers * lanes + 1}


def with_method(run: Run, **update: object) -> Run:
    """`run` with fields of its method replaced without validation."""
    return replace(run, method=run.method.model_copy(update=update))
