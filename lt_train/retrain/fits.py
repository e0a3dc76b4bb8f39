"""`lt_train.fit`: re-train classifiers on a feature bank and look at the results, without a sweep."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd

from lt_train.core.device import check_device
from lt_train.core.errors import LongtailError, SpecError
from lt_train.core.imports import torch
from lt_train.features.bank import FeatureBank
from lt_train.methods.base import METHODS, MethodSpec, TrainingSpec
from lt_train.retrain import fused
from lt_train.retrain.base import EpochSelection, Run, RunResult

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Fit", "Fits", "fit"]


@dataclass(frozen=True)
class Fit:
    """One run with its result.

    Attributes:
        names: of the columns of its score arrays: the accuracies, then further metrics.
    """

    run: Run
    result: RunResult
    names: tuple[str, ...]

    def classifier(self) -> nn.Module:
        """The trained classifier of the selected epoch: from features `[..., D]` to logits `[..., K]`.

        Raises:
            LongtailError: the run failed.
        """
        if self.result.kept is None:
            raise LongtailError(f"{self.run.method.kind}, seed {self.run.seed} failed: {self.result.failure}")
        return self.run.method.classifier({name: torch.tensor(v) for name, v in self.result.kept.state.items()})

    def scores(self, epoch: int | None = None) -> dict[str, float]:
        """Accuracies as fractions of 1, and metrics: `acc_all`, ... on test, `val_acc_all`, ... on a validation set.

        Args:
            epoch: from 0; None for the selected epoch. NaN everywhere if the run failed before it.
        """
        kept = self.result.kept
        at = (-1 if kept is None else kept.epoch) if epoch is None else epoch
        sets = {"": self.result.test_accuracy} | (
            {} if self.result.val_accuracy is None else {"val_": self.result.val_accuracy}
        )
        return {
            f"{prefix}{name}": float(curve[at, column]) if 0 <= at < len(curve) else math.nan
            for prefix, curve in sets.items()
            for column, name in enumerate(self.names)
        }


class Fits(Sequence[Fit]):
    """The fits of one call, in the order of its methods, then of its seeds."""

    def __init__(self, fits: Sequence[Fit]) -> None:
        self._fits = tuple(fits)

    @overload
    def __getitem__(self, index: int) -> Fit: ...
    @overload
    def __getitem__(self, index: slice) -> Fits: ...
    def __getitem__(self, index: int | slice) -> Fit | Fits:
        return Fits(self._fits[index]) if isinstance(index, slice) else self._fits[index]

    def __len__(self) -> int:
        return len(self._fits)

    def to_frame(self) -> pd.DataFrame:
        """One row per fit: `method`, its values, `seed`, `epoch` (from 1), accuracies, metrics, `failure`.

        Values are columns named by dotted path, such as `method.lr`: those that can differ within a batched loop, and
        all others in which the fits differ.
        """
        rows = [
            about
            | {"epoch": None if one.result.kept is None else one.result.kept.epoch + 1}
            | one.scores()
            | {"failure": one.result.failure}
            for one, about in zip(self._fits, self._about(), strict=True)
        ]
        frame = pd.DataFrame(rows)
        return frame.astype({"epoch": "Int64"}) if rows else frame

    def curves(self) -> pd.DataFrame:
        """One row per fit and epoch: the columns of `to_frame` without `failure`, and `loss`."""
        return pd.DataFrame(list(self._epochs()))

    def _epochs(self) -> Iterator[dict[str, Any]]:
        for one, about in zip(self._fits, self._about(), strict=True):
            for epoch, loss in enumerate(one.result.train_loss.tolist()):
                yield about | {"epoch": epoch + 1, "loss": loss} | one.scores(epoch)

    def _about(self) -> list[dict[str, Any]]:
        """What tells the fits apart."""
        documents = [
            dict(_leaves({"method": one.run.method.model_dump(), "training": one.run.training.model_dump()}))
            for one in self._fits
        ]
        batched = {f"method.{path}" for one in self._fits for path in one.run.method.lane_values()}
        paths = list(dict.fromkeys(path for document in documents for path in document if path != "method.kind"))
        shown = [path for path in paths if path in batched or len({str(one.get(path)) for one in documents}) > 1]
        return [
            {"method": one.run.method.kind, **{path: document.get(path) for path in shown}, "seed": one.run.seed}
            for one, document in zip(self._fits, documents, strict=True)
        ]

    def __repr__(self) -> str:
        failed = sum(one.result.failure is not None for one in self._fits)
        return f"<Fits: {len(self)} runs, {failed} failed>"


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested document by dotted path."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def fit(
    bank: FeatureBank,
    methods: MethodSpec | Run | str | Sequence[MethodSpec | Run | str],
    *,
    seeds: int | Sequence[int] = 1,
    training: TrainingSpec | Mapping[str, Any] | None = None,
    selection: EpochSelection | None = None,
    device: str | torch.device = "cpu",
) -> Fits:
    """Re-train the classifier with each method and seed, all in one batched loop.

    Args:
        bank: the features, from `open_bank` or `bank_from_arrays`.
        methods: such as `lt_train.methods.LOS(smooth_factor=0.9)`, or a kind with its defaults, such as `los`. A `Run`
            has its own training and seed.
        seeds: their number, 0 to `seeds` - 1, or the seeds themselves.
        training: epochs and batch size, also as a mapping such as `{"epochs": 10}`; None for the defaults.
        selection: which epoch's head counts, and further metrics; None for the last epoch and accuracies only.
        device: `cpu` or `cuda`.

    Raises:
        SpecError: something else than a method is given, or no seed.
        BankError: a method cannot be trained on this bank; the message says why.
        UserError: the device is unknown or not available.
        OutOfMemory: memory ran out with a single run.
    """
    given = [methods] if isinstance(methods, MethodSpec | Run | str | type) else list(methods)
    try:
        numbers = [operator.index(seed) for seed in seeds] if np.iterable(seeds) else [*range(operator.index(seeds))]
    except TypeError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise SpecError(f"seeds must be a number >= 1, or a list of whole numbers >= 0, got {seeds!r}")
    if not isinstance(bank, FeatureBank):
        raise SpecError(f"bank must be a FeatureBank, from open_bank or bank_from_arrays, got {type(bank).__name__}")
    length = TrainingSpec(**training) if isinstance(training, Mapping) else training or TrainingSpec()
    check_device(str(device))
    runs = [
        run
        for one in map(_method, given)
        for run in ([one] if isinstance(one, Run) else [Run(one, length, seed) for seed in numbers])
    ]
    results = fused.fit(bank, runs, str(device), selection)
    names = tuple(score.name for score in (selection or EpochSelection()).scores)
    return Fits([Fit(run, result, names) for run, result in zip(runs, results, strict=True)])


def _method(given: Any) -> MethodSpec | Run:
    if isinstance(given, str):
        return METHODS.parse({"kind": given})
    if isinstance(given, MethodSpec | Run):
        return given
    if isinstance(given, type):
        raise SpecError(f"methods must be instances, got the class {given.__name__}; pass {given.__name__}(...)")
    raise SpecError(f"methods must be methods, kinds or runs, got {given!r}")
