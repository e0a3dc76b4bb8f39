"""Inputs and outputs of re-training: runs, packs and results, the same for both engines.

`HalvingTrials` decides which runs stop at a rung of successive halving, from recorded accuracies alone.
Shapes: E epochs, C columns of scores, K classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lt_train.core.errors import BankError, SpecError
from lt_train.core.imports import torch
from lt_train.core.io import fingerprint
from lt_train.core.seeding import generator
from lt_train.core.validation import offer
from lt_train.features.bank import FeatureBank
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec
from lt_train.metrics import ACCURACIES, METRICS, MetricSpec, Score, scores, split_masks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NUMERICS_VERSION",
    "EpochSelection",
    "Halving",
    "HalvingTrials",
    "Pack",
    "Run",
    "RunResult",
    "SelectedHead",
    "check_runs",
    "diverged",
    "learning_rate_factor",
    "overflowed",
    "prepared_runs",
    "score_column",
    "start_head",
]


NUMERICS_VERSION = 3
"""Incremented whenever a change alters the results of a run; part of every ledger key."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class EpochSelection:
    """Which epoch's head is selected: the last, or the best by `metric` on `on` (ties: the later, as in the paper).

    An epoch in which `metric` is undefined (NaN) is only selected if it is so in all epochs.

    Attributes:
        metric: `acc_all`, `acc_many`, `acc_medium`, `acc_few`, or the kind of one of `metrics`.
        metrics: further metrics, instances or kinds, computed after every epoch.

    Raises:
        SpecError: `metric` is not one of them, or lower values of it are better; or a kind is listed twice.
    """

    epoch: Literal["last", "best"] = "last"
    on: Literal["val", "test"] = "val"
    metric: str = "acc_all"
    metrics: tuple[MetricSpec, ...] = ()

    def __post_init__(self) -> None:
        given = [METRICS.parse({"kind": one}) if isinstance(one, str) else one for one in self.metrics]
        object.__setattr__(self, "metrics", tuple(given))
        known = {score.name: score for score in self.scores}
        if len(known) < len(self.scores):
            raise SpecError(f"each kind of metric may be listed once, got {', '.join(one.kind for one in given)}")
        if self.metric not in known:
            raise SpecError(f"metric {self.metric!r} is unknown{offer(self.metric, known)}")
        if not known[self.metric].higher_is_better:
            raise SpecError(f"metric must be one of which higher values are better, got {self.metric}")

    @property
    def scores(self) -> tuple[Score, ...]:
        """The columns of the score arrays of a run: C accuracies and metrics."""
        return scores(self.metrics)


@dataclass(frozen=True)
class Halving:
    """Successive halving within a pack (Jamieson and Talwalkar 2016): most of its trials are stopped early.

    At each rung the running trials are ranked by the accuracy that `EpochSelection` names (of the last epoch so far, or
    the best), averaged over their seeds. The best `ceil(n / factor)` continue; the others stop. A trial consists of the
    runs that differ only in the seed. Ties go to the trial that comes first in the pack; a trial with a failed run
    ranks last.

    Attributes:
        rungs: numbers of finished epochs, ascending; a rung at or after the last epoch has no effect.
        factor: > 1.
    """

    rungs: tuple[int, ...]
    factor: float = 2.0

    def __post_init__(self) -> None:
        if list(self.rungs) != sorted({*self.rungs}) or any(rung < 1 for rung in self.rungs):
            raise SpecError(f"rungs must be ascending integers >= 1, got {list(self.rungs)}")
        if not self.factor > 1:
            raise SpecError(f"factor must be > 1, got {self.factor}")


@dataclass(frozen=True)
class Run:
    """One re-training: a method with its hyperparameters, and a seed for batch order and random initial weights."""

    method: MethodSpec
    training: TrainingSpec
    seed: int

    def static_key(self) -> str:
        """Equal for runs that may share a stack: all fields but the lane values and the seed agree."""
        return fingerprint([self.method.static_fields(), self.training.model_dump()])


@dataclass(frozen=True)
class Pack:
    """Runs trained together by one call of an engine. `name` is unique within a sweep and stable across resumes."""

    name: str
    runs: tuple[Run, ...]
    rule: EpochSelection
    halving: Halving | None = None


@dataclass(frozen=True)
class SelectedHead:
    """The head of the selected epoch and its results on the test set.

    Attributes:
        epoch: from 0.
        class_accuracy: float32 `[K]`, fractions; NaN for a class without test images.
        loma: float32 `[K]`, Logits Magnitude (Eq. 6, column form).
        regularised_std: float32 `[K]` (Eq. 7, population form).
        state: tensors of the classifier by name, for `MethodSpec.classifier`.
    """

    epoch: int
    class_accuracy: Array
    loma: Array
    regularised_std: Array
    state: dict[str, Array]


@dataclass(frozen=True)
class RunResult:
    """The result of one run. Accuracies are fractions; an empty split, and an undefined metric, is NaN.

    Attributes:
        val_accuracy: float32 `[E, C]` over `EpochSelection.scores`; accuracies are the mean of per-class accuracies.
            None without a val set.
        test_accuracy: float32 `[E, C]` over `EpochSelection.scores`; accuracies are top-1.
        train_loss: float32 `[E]`, mean per-sample loss over the epoch; NaN for a method that trains nothing.
        kept: the selected head; None when the run failed.
        failure: None, or why the run failed; the curves then end before the epoch in which it failed.
        stopped: None, or the number of epochs after which `Halving` stopped the run; the curves end there.
    """

    val_accuracy: Array | None
    test_accuracy: Array
    train_loss: Array
    kept: SelectedHead | None
    failure: str | None = None
    stopped: int | None = None


def check_runs(bank: FeatureBank, runs: Sequence[Run], rule: EpochSelection, halving: Halving | None = None) -> None:
    """Refuse runs that cannot be trained on this bank, before training starts.

    Raises:
        BankError: features or labels are invalid; a method needs a stage-1 head, or a validation set, and the bank has
            none; classes without training images where a method needs their counts; `rule` names a validation set or
            split that is missing.
    """
    bank.check()
    if (rule.epoch == "best" or halving is not None) and rule.on == "val" and bank.val is None:
        what = "epoch: best" if rule.epoch == "best" else "successive halving"
        raise BankError(f"{what} on val needs a validation set, but this bank has none; select on: test")
    if score_column(rule) < len(ACCURACIES):
        split = split_masks(bank.split_counts)[score_column(rule)]
        if not split.any():
            raise BankError(f"{rule.metric} cannot be selected on: this dataset has no class in that split")
        images = bank.val if rule.on == "val" else bank.test
        if images is not None and not split[images.labels].any():
            raise BankError(f"{rule.metric} cannot be selected on: the {rule.on} set has no image of that split")
    for method in dict.fromkeys(run.method for run in runs):
        _check_method(bank, method)


def _check_method(bank: FeatureBank, method: MethodSpec) -> None:
    random = isinstance(method, TrainedMethod) and method.init == "random"
    if bank.head is None and not random:
        remedy = "set init: random" if isinstance(method, TrainedMethod) else "remove the method"
        raise BankError(
            f"method {method.kind} starts from the stage-1 head, and this bank has none; provide `weight` and `bias` "
            f"with the features, or {remedy} (default baselines of a sweep included)"
        )
    if isinstance(method, TrainedMethod) and method.constraint is not None and bank.head is None:
        raise BankError(
            f"constraint {method.constraint.kind} takes its radius from the stage-1 head, and this bank has none; "
            "provide `weight` and `bias` with the features"
        )
    if method.uses_val and (bank.val is None or not len(bank.val.labels)):
        part = method.kind if method.prepares_on_val or method.post_hoc is None else f"post_hoc {method.post_hoc.kind}"
        raise BankError(f"{part} sets values from the validation set, and this bank has none; provide one or remove it")
    if reason := method.incompatibility(bank.class_counts):
        raise BankError(f"method {method.kind}: {reason}")


def prepared_runs(bank: FeatureBank, runs: Sequence[Run]) -> list[Run]:
    """The runs with what their methods take from the validation set before training; see `MethodSpec.prepared`.

    Raises:
        SpecError: a method changes what must stay as it was.
    """
    methods: dict[MethodSpec, MethodSpec] = {}
    for run in runs:
        method = run.method
        if method.prepares_on_val and method not in methods:
            assert bank.val is not None, "check_runs refuses such methods on a bank without a validation set"
            found = methods[method] = method.prepared(bank.val, bank.head)
            kept = (method.head, method.post_hoc, method.lane_values())
            if (found.head, found.post_hoc, found.lane_values()) != kept:
                raise SpecError(
                    f"method {method.kind}: prepared must not change head, post_hoc or a field that declares BATCHED, "
                    f"got {found!r}; set other fields of the method"
                )
    return [replace(run, method=methods[run.method]) if run.method in methods else run for run in runs]


def start_head(bank: FeatureBank, run: Run) -> tuple[Tensor, Tensor]:
    """The initial head of a run: `(weight [K, D], bias [K])`, float32 on the CPU.

    Random weights are uniform in +-1/sqrt(D), as in torch.nn.Linear, drawn from the run's seed alone.
    """
    if bank.head is not None and not (isinstance(run.method, TrainedMethod) and run.method.init == "random"):
        return bank.head[0].clone(), bank.head[1].clone()
    bound = bank.feature_dim**-0.5
    stream = generator("fresh-head", run.seed)
    weight = torch.empty(bank.num_classes, bank.feature_dim).uniform_(-bound, bound, generator=stream)
    bias = torch.empty(bank.num_classes).uniform_(-bound, bound, generator=stream)
    return weight, bias


def score_column(rule: EpochSelection) -> int:
    """The column of a score array that the rule selects by."""
    return [score.name for score in rule.scores].index(rule.metric)


def learning_rate_factor(epoch: int, epochs: int) -> float:
    """Cosine schedule stepped after each epoch: `(1 + cos(pi e / E)) / 2` for e = 0 .. E-1."""
    return 0.5 * (1.0 + float(np.cos(np.pi * epoch / epochs)))


def overflowed() -> str:
    """The failure message for a post-hoc adjustment that is not finite."""
    return "the post-hoc adjustment is not finite; lower tau"


def diverged(epoch: int) -> str:
    """The failure message for a loss or weights that are not finite in `epoch` (from 0)."""
    return f"diverged: loss or weights are not finite in epoch {epoch + 1}; lower lr"


class HalvingTrials:
    """The trials of a pack: `trials` lists the indices of runs that differ only in the seed, in pack order."""

    def __init__(self, runs: Sequence[Run], rule: EpochSelection, halving: Halving) -> None:
        self.rule, self.halving = rule, halving
        self.epochs = [run.training.epochs if run.method.trains else 1 for run in runs]
        by_trial: dict[object, list[int]] = {}
        for index, run in enumerate(runs):
            by_trial.setdefault((run.method, run.training), []).append(index)
        self.trials = list(by_trial.values())

    def survivors(self, active: Collection[int], finished: int, curves: Sequence[Array | None]) -> set[int]:
        """The indices that continue after `finished` epochs, among those `active`; all of them if that is not a rung.

        Args:
            active: runs that are not stopped yet; failed runs may be among them.
            finished: number of finished epochs.
            curves: for every run the scores on the set that the rule selects on, `[E, C]`; shorter for a failed run.
        """
        running = [trial for trial in self.trials if trial[0] in active and self.epochs[trial[0]] > finished]
        if finished not in self.halving.rungs or not running:
            return set(active)
        # Sorting is stable, so ties go to the trial that comes first.
        ranked = sorted(running, key=lambda trial: -self._score(trial, finished, curves))
        dropped = ranked[math.ceil(len(running) / self.halving.factor) :]
        return set(active) - {index for trial in dropped for index in trial}

    def stops(self, complete: Sequence[RunResult]) -> list[int | None]:
        """The number of epochs after which each of these completely trained runs is stopped; None: it is not."""
        curves = [result.test_accuracy if self.rule.on == "test" else result.val_accuracy for result in complete]
        active = set(range(len(complete)))
        stops: dict[int, int | None] = dict.fromkeys(active)
        for rung in self.halving.rungs:
            left = self.survivors(active, rung, curves)
            stops |= dict.fromkeys(active - left, rung)
            active = left
        return list(stops.values())

    def _score(self, trial: Sequence[int], finished: int, curves: Sequence[Array | None]) -> float:
        """Mean over the trial's seeds of the last or best score so far; -inf if a run failed or it is undefined."""
        column = score_column(self.rule)
        found: list[float] = []
        for index in trial:
            curve = curves[index]
            if curve is None or len(curve) < finished:
                return -math.inf
            values = np.nan_to_num(curve[:finished, column], nan=-math.inf)
            found.append(float(values.max() if self.rule.epoch == "best" else values[-1]))
        return float(np.mean(found))
