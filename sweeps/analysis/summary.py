"""Builds the result of a finished sweep from its trial queue: every number of `result.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lt_train.metrics import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.result import (
    Accuracies,
    ExtendedRun,
    Loma,
    MethodRow,
    Protocol,
    Result,
    Row,
    RunCounts,
    SeedAccuracies,
    TrialRow,
    Winner,
)
from sweeps.analysis.statistics import Array, Comparison, paired
from sweeps.config.plugin_groups import STAGE1_HEAD
from sweeps.config.trials import Phase, Trial
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Record

__all__ = ["summarise"]


def summarise(queue: TrialQueue, notes: tuple[str, ...], seconds: dict[str, float]) -> Result:
    """The result of a queue whose trials are all finished."""
    spec, ledger = queue.spec, queue.ledger
    wanted = {record.key: record for records in queue.finished.values() for record in records}
    failed = sum(record.failure is not None for record in wanted.values())
    stopped = sum(record.stopped is not None for record in wanted.values())
    chosen = spec.selection
    baselines = [trial for trial in queue.in_order() if trial.phase == "baseline"]
    every = [(trial.name, record) for trial in queue.in_order() for record in queue.finished[trial.name]]
    broken = {name: record.failure for name, record in every if record.failure is not None}
    finished = [trial for trial in baselines if trial.name not in broken]
    failures = [f"{name} failed: {why}" for name, why in broken.items() if queue.trials[name].phase != "search"]
    extended, extended_skipped = _extended(queue, finished)
    first, names = queue.winner(), [study.candidate.name for study in queue.studies]
    if len(names) > 1:
        failures += [f"{name}: every trial, or every finalist, failed" for name in names if queue.winner(name) is None]
    return Result(
        sweep=spec.name,
        spec_fingerprint=spec.fingerprint(),
        bank_fingerprint=queue.bank_fingerprint,
        protocol=Protocol(
            on=chosen.on,
            epoch=chosen.epoch,
            objective=chosen.objective,
            metric=chosen.metric,
            seeds=chosen.seeds,
            finalists=chosen.finalists,
        ),
        runs=RunCounts(finished=len(wanted) - failed - stopped, stopped=stopped, failed=failed, cached=queue.cached),
        trials=[
            TrialRow(
                method=trial.candidate,
                number=trial.number,
                params=trial.params,
                objective=queue.objective(trial),
                stopped=queue.stopped(trial),
                seeds=[_seed_row(record) for record in queue.finished[trial.name]],
            )
            for trial in queue.in_order()
            if trial.phase == "search"
        ],
        winner=None if first is None else _winner(queue, first, finished),
        methods=_methods(queue, finished),
        baselines={trial.name.removeprefix("baseline-"): _row(queue, trial) for trial in finished},
        extended=extended,
        extended_skipped=extended_skipped,
        seconds={name: round(value, 3) for name, value in (ledger.seconds | seconds).items()},
        notes=[*notes, *failures],
    )


def _winner(queue: TrialQueue, trial: Trial, baselines: list[Trial]) -> Winner:
    gain = {baseline.name.removeprefix("baseline-"): _difference(queue, trial, baseline) for baseline in baselines}
    row = dict(_row(queue, trial))
    return Winner(**row, method=trial.candidate, trial=trial.number, searched=trial.params, gain=gain)


def _extended(queue: TrialQueue, baselines: list[Trial]) -> tuple[ExtendedRun | None, str]:
    """Extended training of the winner, or why there is none."""
    chosen, winner = queue.spec.selection, queue.winner()
    if winner is None or chosen.extended_training is None:
        return None, ""
    if not queue.extended:
        return None, "the winning method has no training"
    (trial,) = queue.extended
    start = next((one for one in baselines if one.name == f"baseline-{STAGE1_HEAD}"), None)
    found = selection.extended_training(
        queue.finished[trial.name],
        queue.finished[winner.name],
        None if start is None else queue.finished[start.name],
        metric=chosen.metric,
        on=chosen.on,
    )
    if found is None:
        return None, "the extended run failed"
    row = ExtendedRun(
        **dict(_row(queue, trial)),
        times=chosen.extended_training,
        objective=found.accuracy,
        change=found.change,
        trend=found.trend,
        over_start=found.over_start,
        test_change=_difference(queue, trial, winner, selection.ended),
    )
    return row, ""


def _methods(queue: TrialQueue, baselines: list[Trial]) -> list[MethodRow]:
    """The best trial of each candidate method, best first."""
    names = {study.candidate.name for study in queue.studies}
    winners = {trial.name for name in names if (trial := queue.winner(name)) is not None}
    phase: Phase = "finalist" if queue.spec.selection.finalists else "search"
    ranked = [trial for trial in queue.ranking(phase) if trial.name in winners]
    return [_method_row(queue, trial, ranked[0], baselines) for trial in ranked]


def _method_row(queue: TrialQueue, trial: Trial, first: Trial, baselines: list[Trial]) -> MethodRow:
    own = [one for one in queue.in_order() if one.candidate == trial.candidate and one.phase != "extended"]
    tried = [other for other in own if other.phase == "search"]
    objective, behind = queue.objective(trial), _difference(queue, trial, first)
    metric = queue.spec.selection.metric
    assert objective is not None, "a failed trial does not win"
    return MethodRow(
        **dict(_winner(queue, trial, baselines)),
        objective=objective,
        behind=behind,
        tied=trial is first or (metric in behind and behind[metric].verdict == "tied"),
        trials=len(tried),
        failed_trials=sum(queue.objective(other) is None for other in tried),
        stopped_trials=sum(queue.stopped(other) is not None for other in tried),
        runs=len({record.key for other in own for record in queue.finished[other.name]}),
    )


def _difference(
    queue: TrialQueue,
    ours: Trial,
    theirs: Trial,
    read: Callable[[Sequence[Record]], Array] = selection.reported,
) -> dict[str, Comparison]:
    """`ours` minus `theirs` on the test set, by metric, paired by seed; a single run stands for every seed."""
    a, b = np.broadcast_arrays(*(read(queue.finished[trial.name]) for trial in (ours, theirs)))
    found = {f"acc_{split}": paired(a[:, column], b[:, column]) for column, split in enumerate(SPLITS)}
    return {metric: comparison for metric, comparison in found.items() if comparison is not None}


def _row(queue: TrialQueue, trial: Trial) -> Row:
    chosen = queue.spec.selection
    records = queue.finished[trial.name]
    values = selection.reported(records)
    best = selection.best_seed(records, metric=chosen.metric, on=chosen.on)
    return Row(
        params=trial.method.model_dump(mode="json") | trial.training.model_dump(mode="json"),
        seeds=[record.seed for record in records],
        best_of=_seed_row(records[best]),
        mean=Accuracies.of(values),
        loma=Loma(
            mean=selection.mean_of_all([record.loma_mean for record in records]),
            cv=selection.mean_of_all([record.loma_cv for record in records]),
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
