"""`result.json`: what a sweep found, in one documented pydantic model. Touch this only with a new schema number.

Accuracies are fractions of 1; an empty split, or an interval of one seed, is null. Knows finished schedules.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lt_train.metrics import SPLITS
from sweeps import selection
from sweeps.ledger import Record
from sweeps.schedule import Schedule, Trial

__all__ = ["Gain", "Result", "Row", "summarise"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Accuracies(_Model):
    """Top-1 accuracy on the test set, over all classes and by split."""

    acc_all: float | None
    acc_many: float | None
    acc_medium: float | None
    acc_few: float | None


class SeedAccuracies(Accuracies):
    """Accuracies of one run at the epoch that counts; all null when it failed."""

    seed: int
    val_acc_all: float | None = Field(description="class-balanced accuracy on the validation set, if there is one")
    failure: str | None = Field(description="why the run failed; null for a finished one")


class Intervals(_Model):
    """95% intervals of the mean over seeds (Student's t), each `[low, high]`."""

    acc_all: tuple[float, float] | None
    acc_many: tuple[float, float] | None
    acc_medium: tuple[float, float] | None
    acc_few: tuple[float, float] | None


class Loma(_Model):
    """Logits Magnitude (paper, Eq. 6) over classes, mean over seeds; cv is std over mean, 0 is balanced."""

    mean: float | None
    cv: float | None


class Gain(_Model):
    """Winner minus baseline in one metric, paired by seed: mean, 95% interval, two-sided p of a paired t test."""

    mean: float
    ci95: tuple[float, float] | None
    p_value: float | None


class Row(_Model):
    """One setting, reported: the best of its seeds beside their mean and its interval."""

    params: dict[str, Any]
    seeds: list[int]
    best_of: SeedAccuracies
    mean: Accuracies
    ci95: Intervals
    loma: Loma


class Winner(Row):
    """The selected trial; `gain` is over each baseline, by metric."""

    trial: int
    gain: dict[str, dict[str, Gain]]


class TrialRow(_Model):
    """One trial of the search with all its seeds; `objective` is null when it failed."""

    number: int
    params: dict[str, Any]
    objective: float | None
    seeds: list[SeedAccuracies]


class Protocol(_Model):
    """What the numbers were selected on."""

    on: Literal["val", "test"]
    epoch: Literal["last", "best"]
    objective: Literal["mean", "best"]
    metric: str
    seeds: int
    finalists: int = Field(description="trials run again on fresh seeds; the reported numbers are then theirs")


class RunCounts(_Model):
    """Runs: trained to the end, failed, and wanted again when they were finished already (duplicates, resumes)."""

    finished: int
    failed: int
    cached: int


class Result(_Model):
    """The outcome of one sweep, as written to `result.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    sweep: str
    spec_fingerprint: str
    bank_fingerprint: str
    protocol: Protocol
    runs: RunCounts
    trials: list[TrialRow]
    winner: Winner | None = Field(description="null when every trial, or every finalist, failed")
    baselines: dict[str, Row]
    seconds: dict[str, float] = Field(
        description="of this call: total; prepare (data, stage 1, bank); backend (wall clock, process starts in it); "
        "search (asking and telling); tracking; ledger. Of all calls, summed over workers: train"
    )
    notes: list[str] = Field(description="what to know about the data, and which baselines or finalists failed")


def summarise(schedule: Schedule, notes: tuple[str, ...], seconds: dict[str, float]) -> Result:
    """The result of a schedule that is exhausted."""
    spec, ledger = schedule.spec, schedule.ledger
    wanted = {record.key: record for records in schedule.finished.values() for record in records}
    failed = sum(record.failure is not None for record in wanted.values())
    chosen = spec.selection
    baselines = [trial for trial in schedule.trials.values() if trial.phase == "baseline"]
    finished = schedule.finished.items()
    broken = {name: record.failure for name, records in finished for record in records if record.failure is not None}
    sound = [trial for trial in baselines if trial.name not in broken]
    told = [f"{name} failed: {why}" for name, why in broken.items() if schedule.trials[name].phase != "search"]
    return Result(
        sweep=spec.name,
        spec_fingerprint=spec.fingerprint(),
        bank_fingerprint=schedule.bank_fingerprint,
        protocol=Protocol(
            on=chosen.on,
            epoch=chosen.epoch,
            objective=chosen.objective,
            metric=chosen.metric,
            seeds=chosen.seeds,
            finalists=chosen.finalists,
        ),
        runs=RunCounts(finished=len(wanted) - failed, failed=failed, cached=schedule.cached),
        trials=[
            TrialRow(
                number=trial.number,
                params=trial.params,
                objective=schedule.objective(trial),
                seeds=[_seed_row(record) for record in schedule.finished[trial.name]],
            )
            for trial in schedule.trials.values()
            if trial.phase == "search"
        ],
        winner=_winner(schedule, sound),
        baselines={trial.name.removeprefix("baseline-"): _row(schedule, trial) for trial in sound},
        seconds={name: round(value, 3) for name, value in (ledger.seconds | seconds).items()},
        notes=[*notes, *told],
    )


def _winner(schedule: Schedule, baselines: list[Trial]) -> Winner | None:
    trial = schedule.winner()
    if trial is None:
        return None
    ours = selection.reported(schedule.finished[trial.name])
    gain: dict[str, dict[str, Gain]] = {}
    for baseline in baselines:
        theirs = np.broadcast_to(selection.reported(schedule.finished[baseline.name]), ours.shape)
        by_metric: dict[str, Gain] = {}
        for column, split in enumerate(SPLITS):
            difference = selection.paired(ours[:, column], theirs[:, column])
            if not math.isnan(difference.mean):
                by_metric[f"acc_{split}"] = Gain(
                    mean=difference.mean, ci95=_pair(difference.ci95), p_value=difference.p_value
                )
        gain[baseline.name.removeprefix("baseline-")] = by_metric
    row = _row(schedule, trial)
    return Winner(**dict(row), trial=trial.number, gain=gain)


def _row(schedule: Schedule, trial: Trial) -> Row:
    chosen = schedule.spec.selection
    records = schedule.finished[trial.name]
    values = selection.reported(records)
    best = selection.best_seed(records, metric=chosen.metric, on=chosen.on)
    return Row(
        params=trial.method.model_dump(mode="json") | trial.training.model_dump(mode="json"),
        seeds=[record.seed for record in records],
        best_of=_seed_row(records[best]),
        mean=Accuracies(**_named(selection.mean(values))),
        ci95=Intervals(**{f"acc_{split}": _pair(selection.interval(values[:, i])) for i, split in enumerate(SPLITS)}),
        loma=Loma(
            mean=_mean([record.loma_mean for record in records]), cv=_mean([record.loma_cv for record in records])
        ),
    )


def _seed_row(record: Record) -> SeedAccuracies:
    if record.failure is not None:
        nothing = dict.fromkeys((f"acc_{split}" for split in SPLITS), None)
        return SeedAccuracies(**nothing, seed=record.seed, val_acc_all=None, failure=record.failure)
    val = selection.reported([record], "val")[0, 0] if record.val else math.nan
    return SeedAccuracies(
        **_named(selection.reported([record])[0]), seed=record.seed, val_acc_all=_number(val), failure=None
    )


def _named(row: Any) -> dict[str, float | None]:
    return {f"acc_{split}": _number(value) for split, value in zip(SPLITS, row, strict=True)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _pair(interval: selection.Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None
