"""What goes into re-training and what comes out: runs, packs and results, the same for both engines.

Touch this to change what a run keeps. It knows methods and banks; it knows nothing of loops or devices.
Shapes: E epochs, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lt_train.core.errors import BankError, SpecError
from lt_train.core.io import fingerprint
from lt_train.core.seeding import generator
from lt_train.features.bank import FeatureBank
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec
from lt_train.metrics.accuracy import SPLITS, split_masks

__all__ = [
    "NUMERICS_VERSION",
    "Engine",
    "EpochSelection",
    "Halving",
    "Pack",
    "Run",
    "RunResult",
    "SelectedHead",
    "check_runs",
    "diverged",
    "learning_rate_factor",
    "overflowed",
    "score_column",
    "start_head",
]

NUMERICS_VERSION = 3
"""Raised whenever a change makes a run's numbers differ; part of every ledger key."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class EpochSelection:
    """Which epoch's head counts: the last, or the best on `on` by `metric` (ties: the later, as the paper's code)."""

    epoch: Literal["last", "best"] = "last"
    on: Literal["val", "test"] = "val"
    metric: Literal["acc_all", "acc_many", "acc_medium", "acc_few"] = "acc_all"


@dataclass(frozen=True)
class Halving:
    """Successive halving inside a pack (Jamieson and Talwalkar 2016): most of its trials are stopped early.

    After each rung the trials still running are ranked by the mean over their seeds of what `EpochSelection` judges by (the
    last epoch so far, or the best); the best `ceil(n / factor)` go on and the others stop where they are. A trial is
    the runs that agree on everything but the seed. Ties go to the trial that comes first in the pack; a trial with a
    failed run is last.

    Attributes:
        rungs: epochs finished, ascending; a rung at or after the last epoch changes nothing.
        factor: > 1.
    """

    rungs: tuple[int, ...]
    factor: float = 2.0

    def __post_init__(self) -> None:
        if list(self.rungs) != sorted({*self.rungs}) or any(rung < 1 for rung in self.rungs):
            raise SpecError(f"rungs must be whole numbers >= 1 that ascend, got {list(self.rungs)}")
        if not self.factor > 1:
            raise SpecError(f"factor must be > 1, got {self.factor}")


@dataclass(frozen=True)
class Run:
    """One re-training: a method with its hyperparameters, and a seed for batch order and fresh starts."""

    method: MethodSpec
    training: TrainingSpec
    seed: int

    def static_key(self) -> str:
        """Equal for runs that may train in one loop: everything but the lane fields and the seed agrees."""
        return fingerprint([self.method.static_fields(), self.training.model_dump()])


@dataclass(frozen=True)
class Pack:
    """Runs trained together in one loop. `name` is unique within a sweep and the same after a resume."""

    name: str
    runs: tuple[Run, ...]
    rule: EpochSelection
    halving: Halving | None = None


@dataclass(frozen=True)
class SelectedHead:
    """The head of the epoch that counts, and what it does on the test set.

    Attributes:
        epoch: from 0.
        class_accuracy: float32 `[K]`, fractions; NaN for a class without test images.
        loma: float32 `[K]`, Logits Magnitude (Eq. 6, column form).
        regularised_std: float32 `[K]` (Eq. 7, population form).
        state: tensors of the classifier by name, as `classifier` takes them.
    """

    epoch: int
    class_accuracy: Array
    loma: Array
    regularised_std: Array
    state: dict[str, Array]


@dataclass(frozen=True)
class RunResult:
    """What one run leaves behind. Accuracies are fractions; an empty split is NaN.

    Attributes:
        val_accuracy: float32 `[E, 4]` over `metrics.SPLITS`, mean of per-class accuracies; None without a val set.
        test_accuracy: float32 `[E, 4]` over `metrics.SPLITS`, top-1.
        train_loss: float32 `[E]`, mean per-sample loss along the epoch; NaN for a method that trains nothing.
        kept: the head of the epoch that counts; None when the run failed.
        failure: None, or why the run failed; the curves then end before the epoch of the failure.
        stopped: None, or the epochs after which `Halving` stopped the run; the curves end there.
    """

    val_accuracy: Array | None
    test_accuracy: Array
    train_loss: Array
    kept: SelectedHead | None
    failure: str | None = None
    stopped: int | None = None


class Engine(Protocol):
    """The signature both engines share: results in the order of `runs`."""

    def __call__(
        self,
        bank: FeatureBank,
        runs: Sequence[Run],
        device: str = "cpu",
        rule: EpochSelection | None = None,
        halving: Halving | None = None,
    ) -> list[RunResult]:
        """Train every run on `bank`."""


def check_runs(bank: FeatureBank, runs: Sequence[Run], rule: EpochSelection, halving: Halving | None = None) -> None:
    """Refuse what cannot be trained before anything starts.

    Raises:
        BankError: features or labels that cannot be trained on; a start or a constraint that needs a stage-1 head the
            bank does not have; classes without images where a method needs their counts; a rule on a validation set
            or a split that is not there.
    """
    bank.check()
    if (rule.epoch == "best" or halving is not None) and rule.on == "val" and bank.val is None:
        what = "epoch: best" if rule.epoch == "best" else "successive halving"
        raise BankError(f"{what} on val needs a validation set, and this bank has none; judge on: test")
    split = split_masks(bank.split_counts)[score_column(rule)]
    if not split.any():
        raise BankError(f"{rule.metric} cannot be selected on: no class of this dataset is in that split")
    judged = bank.val if rule.on == "val" else bank.test
    if judged is not None and not split[judged.labels].any():
        raise BankError(f"{rule.metric} cannot be selected on: the {rule.on} set has no image of that split")
    for method in dict.fromkeys(run.method for run in runs):
        _check_method(bank, method)


def _check_method(bank: FeatureBank, method: MethodSpec) -> None:
    fresh = isinstance(method, TrainedMethod) and method.init == "random"
    if bank.head is None and not fresh:
        way_out = "set init: random" if isinstance(method, TrainedMethod) else "leave it out"
        raise BankError(
            f"method {method.kind} starts from the stage-1 head, and this bank has none; bring `weight` and `bias` "
            f"with the features, or {way_out}, in a sweep's baselines too"
        )
    if isinstance(method, TrainedMethod) and method.constraint is not None and bank.head is None:
        raise BankError(
            f"constraint {method.constraint.kind} takes its radius from the stage-1 head, and this bank has none; "
            "bring `weight` and `bias` with the features"
        )
    if reason := method.incompatibility(bank.class_counts):
        raise BankError(f"method {method.kind}: {reason}")


def start_head(bank: FeatureBank, run: Run) -> tuple[Tensor, Tensor]:
    """The head a run starts from: `(weight [K, D], bias [K])`, float32 on the CPU.

    A fresh start is uniform in +-1/sqrt(D), as torch.nn.Linear's own, drawn from the run's seed alone.
    """
    if bank.head is not None and not (isinstance(run.method, TrainedMethod) and run.method.init == "random"):
        return bank.head[0].clone(), bank.head[1].clone()
    bound = bank.feature_dim**-0.5
    stream = generator("fresh-head", run.seed)
    weight = torch.empty(bank.num_classes, bank.feature_dim).uniform_(-bound, bound, generator=stream)
    bias = torch.empty(bank.num_classes).uniform_(-bound, bound, generator=stream)
    return weight, bias


def score_column(rule: EpochSelection) -> int:
    """The column of an accuracy array that a rule judges by."""
    return SPLITS.index(rule.metric.removeprefix("acc_"))


def learning_rate_factor(epoch: int, epochs: int) -> float:
    """Cosine schedule stepped after each epoch: `(1 + cos(pi e / E)) / 2` for e = 0 .. E-1."""
    return 0.5 * (1.0 + float(np.cos(np.pi * epoch / epochs)))


def overflowed() -> str:
    """How a failure is worded when a post-hoc adjustment is not finite."""
    return "the post-hoc adjustment is not finite: no logit could be read; lower tau"


def diverged(epoch: int) -> str:
    """How a failure is worded when loss or weights stop being finite in `epoch` (from 0)."""
    return f"diverged: loss or weights are not finite in epoch {epoch + 1}; lower lr"
