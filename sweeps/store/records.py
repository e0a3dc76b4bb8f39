"""The records of a ledger: trials, runs and their arrays, and the fields of their lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lt_train.core.imports import torch
from lt_train.core.io import fingerprint
from lt_train.metrics import ACCURACIES, Score, loma_cv
from lt_train.retrain.base import NUMERICS_VERSION, EpochSelection, Halving, Run, RunResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sweeps.config.trials import Phase, Trial

__all__ = [
    "Record",
    "RecordedTrial",
    "RunArrays",
    "Scores",
    "SweepEnd",
    "rounded",
    "run_key",
]

Scores = tuple[float | None, ...]
"""Accuracy by split, in the order of `SPLITS`, then the further metrics; None stands for NaN: a split without classes.
"""


def run_key(
    bank_fingerprint: str,
    run: Run,
    rule: EpochSelection,
    halving: Halving | None = None,
    pool: str = "",
    code: Mapping[str, str] | None = None,
) -> str:
    """The identity of a run: a fingerprint of everything that determines its numbers, 64 hex digits.

    Which runs share its pack is not part of it; within a `pool`, such as one candidate, that follows from the sweep
    file. `code` are fingerprints of the code of kinds from outside this package (`lt_train.core.code.code_of`).
    """
    counts: list[Any] = [rule.epoch, rule.on, rule.metric] if rule.epoch == "best" else ["last"]
    if halving is not None:
        # The rungs compare trials by this rule, so it matters even where the last epoch counts.
        counts = [rule.epoch, rule.on, rule.metric, {"rungs": halving.rungs, "factor": halving.factor}]
    return fingerprint(
        {
            "numerics": NUMERICS_VERSION,
            "bank": bank_fingerprint,
            "method": run.method.model_dump(mode="json"),
            "training": run.training.model_dump(mode="json"),
            "seed": run.seed,
            "rule": counts,
            **({"metrics": [one.model_dump(mode="json") for one in rule.metrics]} if rule.metrics else {}),
            **({"pool": pool} if pool else {}),
            **({"code": dict(code)} if code else {}),
        }
    )


@dataclass(frozen=True, slots=True)
class Record:
    """A recorded run. Accuracies are fractions at the selected epoch.

    Attributes:
        failure: why the run failed; None if it did not.
        epochs: number of finished epochs.
        epoch: the selected epoch, from 0; -1 for a failed run.
        val: class-balanced accuracy on the validation set, and metrics; None without one, and for a failed run.
        test: top-1 accuracy on the test set, and metrics; None for a failed run.
        at_ms: when it was recorded, in milliseconds since 1970.
        metrics: the kinds of the further metrics; empty for a failed run.
    """

    key: str
    seed: int
    status: Literal["finished", "stopped", "failed"]
    failure: str | None
    epochs: int
    epoch: int
    val: Scores | None
    test: Scores | None
    loma_mean: float | None
    loma_cv: float | None
    pack: str
    at_ms: int
    metrics: tuple[str, ...] = ()

    @property
    def stopped(self) -> int | None:
        """Number of epochs after which the run was stopped early; None if it was not."""
        return self.epochs if self.status == "stopped" else None

    @classmethod
    def of(
        cls, key: str, seed: int, result: RunResult, pack: str, at_ms: int, scores: Sequence[Score] = ACCURACIES
    ) -> Record:
        """The record of a run's result; `scores` are the columns of its score arrays."""
        kept = result.kept
        val = None if kept is None or result.val_accuracy is None else result.val_accuracy[kept.epoch]
        return cls(
            key=key,
            seed=seed,
            status="failed" if kept is None else "finished" if result.stopped is None else "stopped",
            failure=result.failure,
            epochs=len(result.test_accuracy) if result.stopped is None else result.stopped,
            epoch=-1 if kept is None else kept.epoch,
            val=None if val is None else _row(val),
            test=None if kept is None else _row(result.test_accuracy[kept.epoch]),
            loma_mean=None if kept is None else _finite(float(np.nanmean(kept.loma))),
            loma_cv=None if kept is None else _finite(float(loma_cv(torch.tensor(kept.loma)))),
            pack=pack,
            at_ms=at_ms,
            metrics=() if kept is None else tuple(score.name for score in scores[len(ACCURACIES) :]),
        )

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Record:
        """The record in a line of the ledger."""
        test, val = (
            (*(line[f"{prefix}{score.name}"] for score in ACCURACIES), *line.get(f"{prefix}metrics", {}).values())
            if f"{prefix}acc_all" in line
            else None
            for prefix in ("", "val_")
        )
        return cls(
            key=line["key"],
            seed=line["seed"],
            status=line["status"],
            failure=line.get("failure"),
            epochs=line["epochs"],
            epoch=-1 if line["epoch"] is None else line["epoch"] - 1,
            val=val,
            test=test,
            loma_mean=line["loma_mean"],
            loma_cv=line["loma_cv"],
            pack=line["pack"],
            at_ms=line["at_ms"],
            metrics=tuple(line.get("metrics", ())),
        )

    def line(self, trial: Trial) -> dict[str, Any]:
        """The line of this run, which `trial` was the first to request. Epochs are counted from 1."""
        return {
            "event": "run",
            "at_ms": self.at_ms,
            **_trial_fields(trial.name, trial.phase, trial.display_name, trial.number, trial.params),
            "seed": self.seed,
            "status": self.status,
            **({} if self.failure is None else {"failure": self.failure}),
            "epochs": self.epochs,
            "epoch": None if self.epoch < 0 else self.epoch + 1,
            **self._named("", self.test),
            **self._named("val_", self.val),
            "loma_mean": self.loma_mean,
            "loma_cv": self.loma_cv,
            "key": self.key,
            "pack": self.pack,
        }

    def _named(self, prefix: str, values: Scores | None) -> dict[str, Any]:
        """Fields of a line; the metrics are in one mapping, so that their names cannot be those of other fields."""
        if values is None:
            return {}
        fields: dict[str, Any] = {f"{prefix}{one.name}": value for one, value in zip(ACCURACIES, values, strict=False)}
        if self.metrics:
            fields[f"{prefix}metrics"] = dict(zip(self.metrics, values[len(ACCURACIES) :], strict=True))
        return fields


@dataclass(frozen=True, slots=True)
class RecordedTrial:
    """A proposed trial. Other fields are those of `sweeps.config.trials.Trial`.

    Attributes:
        method: the name of the candidate, or the kind of a baseline.
        keys: those of its runs, by seed.
        proposed_with: name and version of the library that proposed its values; empty if there is none.
        at_ms: when it was recorded, in milliseconds since 1970.
    """

    name: str
    phase: Phase
    method: str
    number: int
    params: dict[str, Any]
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    proposed_with: str
    at_ms: int = field(compare=False)

    @classmethod
    def of(cls, trial: Trial, keys: Sequence[str], proposed_with: str, at_ms: int) -> RecordedTrial:
        """The record of a trial."""
        about = (trial.name, trial.phase, trial.display_name, trial.number, dict(trial.params), tuple(trial.seeds))
        return cls(*about, tuple(keys), proposed_with, at_ms)

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> RecordedTrial:
        """The trial in a line of the ledger. Its searched values are the fields whose names are dotted paths."""
        params = {name: value for name, value in line.items() if "." in name}
        about = (line["trial"], line["phase"], line["method"], line["number"], params, tuple(line["seeds"]))
        return cls(*about, tuple(line["keys"]), line.get("proposed_with", ""), line["at_ms"])

    def line(self) -> dict[str, Any]:
        """The line of this trial."""
        return {
            "event": "trial",
            "at_ms": self.at_ms,
            **_trial_fields(self.name, self.phase, self.method, self.number, self.params),
            "seeds": list(self.seeds),
            "keys": list(self.keys),
            **({"proposed_with": self.proposed_with} if self.proposed_with else {}),
        }


@dataclass(frozen=True)
class RunArrays:
    """The arrays of one run: E epochs, K classes. Accuracies are fractions; NaN for a split or class without images.

    Attributes:
        val: `[E, C]`, class-balanced accuracy by split after every epoch, then metrics; None without a validation set.
        test: `[E, C]`, top-1 accuracy by split, then metrics.
        loss: `[E]`, mean training loss.
        class_accuracy, loma, regularised_std: `[K]`, on test at the selected epoch; empty for a failed run.
    """

    val: NDArray[np.float64] | None
    test: NDArray[np.float64]
    loss: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    loma: NDArray[np.float64]
    regularised_std: NDArray[np.float64]


@dataclass(frozen=True)
class SweepEnd:
    """The end of a sweep: seconds by activity of the call that trained its last runs, and remarks on the data."""

    seconds: Mapping[str, float]
    notes: tuple[str, ...]


def _trial_fields(name: str, phase: Phase, method: str, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a trial that its line and those of its runs have in common."""
    return {"trial": name, "phase": phase, "method": method, "number": number, **params}


_DECIMALS = 7


def rounded(array: NDArray[Any]) -> NDArray[np.float64]:
    """In double precision with the decimals that lines have, so that numbers from both sources agree."""
    return np.round(array.astype(np.float64), _DECIMALS).astype(np.float64)


def _row(row: NDArray[np.float32]) -> Scores:
    return tuple(_finite(round(float(value), _DECIMALS)) for value in row)


def _finite(value: float) -> float | None:
    """None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None
