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
from sweeps.schedule import Schedule
from sweeps.study import Phase, Trial

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

    params: dict[str, Any] = Field(description="the method with its parts, and the training, as a sweep file has them")
    seeds: list[int]
    best_of: SeedAccuracies
    mean: Accuracies
    ci95: Intervals
    loma: Loma


class Winner(Row):
    """The selected trial; `gain` is over each baseline, by metric."""

    method: str = Field(default="", description="the name in `methods` of the method whose trial it is")
    trial: int
    searched: dict[str, Any] = Field(default={}, description="the searched values by dotted path")
    gain: dict[str, dict[str, Gain]]


class MethodRow(Winner):
    """One method at its best: its own winner, and what was spent to find it."""

    objective: float = Field(description="what its winner was selected by: metric, set and objective of the protocol")
    behind: dict[str, Gain] = Field(description="this method minus the first of the table, by metric, paired by seed")
    tied: bool = Field(
        description="the 95% interval of `behind`, in the protocol's metric on test, holds 0: over these seeds there "
        "is no difference from the first, which is tied with itself"
    )
    trials: int = Field(description="settings tried")
    failed_trials: int
    stopped_trials: int = Field(default=0, description="settings that the scheduler stopped early")
    runs: int = Field(description="runs finished, stopped or failed, of trials and finalists")


class TrialRow(_Model):
    """One trial of the search with all its seeds; `objective` is null when it failed."""

    method: str = Field(default="", description="the name in `methods` of the method it is a trial of")
    number: int = Field(description="counted for each method")
    params: dict[str, Any] = Field(description="the searched values by dotted path")
    objective: float | None
    stopped: int | None = Field(
        default=None, description="epochs after which the scheduler stopped it; its numbers are then of that epoch"
    )
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
    """Runs: trained to the end, stopped early, failed, and wanted again when done already (duplicates, resumes)."""

    finished: int
    stopped: int = 0
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
    winner: Winner | None = Field(description="the best of all methods; null when every trial, or finalist, failed")
    methods: list[MethodRow] = Field(
        default=[], description="every method's winner, ranked by what is selected on; without those that all failed"
    )
    baselines: dict[str, Row]
    seconds: dict[str, float] = Field(
        description="of this call: total; prepare (data, stage 1, bank); backend (wall clock, process starts in it); "
        "search (asking and telling); tracking (beside the others); ledger. Of all calls, summed over workers: train"
    )
    notes: list[str] = Field(description="what to know about the data, and which baselines or finalists failed")

    def other_baselines(self) -> dict[str, Row]:
        """The baselines whose setting no method's row shows already."""
        shown = [row.params for row in self.methods]
        return {name: row for name, row in self.baselines.items() if row.params not in shown}


def summarise(schedule: Schedule, notes: tuple[str, ...], seconds: dict[str, float]) -> Result:
    """The result of a schedule that is exhausted."""
    spec, ledger = schedule.spec, schedule.ledger
    wanted = {record.key: record for records in schedule.finished.values() for record in records}
    failed = sum(record.failure is not None for record in wanted.values())
    stopped = sum(record.stopped is not None for record in wanted.values())
    chosen = spec.selection
    baselines = [trial for trial in schedule.in_order() if trial.phase == "baseline"]
    every = [(trial.name, record) for trial in schedule.in_order() for record in schedule.finished[trial.name]]
    broken = {name: record.failure for name, record in every if record.failure is not None}
    sound = [trial for trial in baselines if trial.name not in broken]
    told = [f"{name} failed: {why}" for name, why in broken.items() if schedule.trials[name].phase != "search"]
    first, names = schedule.winner(), [study.contestant.name for study in schedule.studies]
    if len(names) > 1:
        told += [f"{name}: every trial, or every finalist, failed" for name in names if schedule.winner(name) is None]
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
        runs=RunCounts(finished=len(wanted) - failed - stopped, stopped=stopped, failed=failed, cached=schedule.cached),
        trials=[
            TrialRow(
                method=trial.contestant,
                number=trial.number,
                params=trial.params,
                objective=schedule.objective(trial),
                stopped=schedule.stopped(trial),
                seeds=[_seed_row(record) for record in schedule.finished[trial.name]],
            )
            for trial in schedule.in_order()
            if trial.phase == "search"
        ],
        winner=None if first is None else _winner(schedule, first, sound),
        methods=_methods(schedule, sound),
        baselines={trial.name.removeprefix("baseline-"): _row(schedule, trial) for trial in sound},
        seconds={name: round(value, 3) for name, value in (ledger.seconds | seconds).items()},
        notes=[*notes, *told],
    )


def _winner(schedule: Schedule, trial: Trial, baselines: list[Trial]) -> Winner:
    gain = {baseline.name.removeprefix("baseline-"): _difference(schedule, trial, baseline) for baseline in baselines}
    row = dict(_row(schedule, trial))
    return Winner(**row, method=trial.contestant, trial=trial.number, searched=trial.params, gain=gain)


def _methods(schedule: Schedule, baselines: list[Trial]) -> list[MethodRow]:
    """Each contestant's winner, ranked as the winner of all is chosen."""
    names = {study.contestant.name for study in schedule.studies}
    winners = {trial.name for name in names if (trial := schedule.winner(name)) is not None}
    phase: Phase = "finalist" if schedule.spec.selection.finalists else "search"
    ranked = [trial for trial in schedule.ranking(phase) if trial.name in winners]
    return [_method_row(schedule, trial, ranked[0], baselines) for trial in ranked]


def _method_row(schedule: Schedule, trial: Trial, first: Trial, baselines: list[Trial]) -> MethodRow:
    own = [other for other in schedule.in_order() if other.contestant == trial.contestant]
    tried = [other for other in own if other.phase == "search"]
    objective, behind = schedule.objective(trial), _difference(schedule, trial, first)
    assert objective is not None, "a trial that failed does not win"
    return MethodRow(
        **dict(_winner(schedule, trial, baselines)),
        objective=objective,
        behind=behind,
        tied=trial is first or _covers_zero(behind.get(schedule.spec.selection.metric)),
        trials=len(tried),
        failed_trials=sum(schedule.objective(other) is None for other in tried),
        stopped_trials=sum(schedule.stopped(other) is not None for other in tried),
        runs=len({record.key for other in own for record in schedule.finished[other.name]}),
    )


def _difference(schedule: Schedule, ours: Trial, theirs: Trial) -> dict[str, Gain]:
    """`ours` minus `theirs` on the test set, by metric, paired by seed; one run stands for every seed."""
    a, b = np.broadcast_arrays(*(selection.reported(schedule.finished[trial.name]) for trial in (ours, theirs)))
    by_metric: dict[str, Gain] = {}
    for column, split in enumerate(SPLITS):
        difference = selection.paired(a[:, column], b[:, column])
        if not math.isnan(difference.mean):
            by_metric[f"acc_{split}"] = Gain(
                mean=difference.mean, ci95=_pair(difference.ci95), p_value=difference.p_value
            )
    return by_metric


def _covers_zero(difference: Gain | None) -> bool:
    """Whether a difference may be none: its interval holds 0, or without an interval it is 0 itself."""
    if difference is None:
        return False
    low, high = difference.ci95 or (difference.mean, difference.mean)
    return low <= 0 <= high


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
