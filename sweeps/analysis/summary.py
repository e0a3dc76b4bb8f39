"""Computes the result of a sweep from its recorded trials: every number of `result.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lt_train.core.validation import named
from lt_train.metrics import ACCURACIES, Score
from sweeps.analysis import selection
from sweeps.analysis.load import Sweep, TrialRuns
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
    in_fields,
)
from sweeps.analysis.statistics import Array, Comparison, oriented, paired
from sweeps.store.records import Record

__all__ = ["summarise"]


def summarise(sweep: Sweep) -> Result:
    """The result of a finished sweep."""
    spec, chosen = sweep.spec, sweep.spec.selection
    trained = {record.key: record for one in sweep.every for record in one.records}
    failed = sum(record.status == "failed" for record in trained.values())
    stopped = sum(record.status == "stopped" for record in trained.values())
    others = [one for one in sweep.every if one.trial.phase != "search"]
    broken = {one.trial.name: record.failure for one in others for record in one.records if record.failure is not None}
    failures = [f"{name} failed: {why}" for name, why in broken.items()]
    extended, extended_skipped = _extended(sweep)
    names, methods = [candidate.name for candidate in spec.candidates()], _methods(sweep)
    if len(names) > 1:
        left = {row.method for row in methods}
        failures += [f"{name}: every trial, or every finalist, failed" for name in names if name not in left]
    return Result(
        sweep=spec.name,
        spec_fingerprint=spec.fingerprint(),
        bank_fingerprint=sweep.bank,
        protocol=Protocol(
            on=chosen.on,
            epoch=chosen.epoch,
            objective=chosen.objective,
            metric=chosen.metric,
            seeds=chosen.seeds,
            finalists=chosen.finalists,
        ),
        metrics=list(spec.scores[len(ACCURACIES) :]),
        runs=RunCounts(
            finished=len(trained) - failed - stopped, stopped=stopped, failed=failed, shared=sweep.shared_runs
        ),
        trials=[
            TrialRow(
                method=one.trial.candidate,
                number=one.trial.number,
                params=one.trial.params,
                objective=one.objective,
                stopped=one.stopped,
                seeds=[_seed_row(record, spec.scores) for record in one.records],
            )
            for one in sweep.searched
        ],
        winner=None if sweep.winner is None else _winner(sweep, sweep.winner),
        methods=methods,
        baselines={name: _row(sweep, one) for name, one in sweep.finished_baselines.items()},
        extended=extended,
        extended_skipped=extended_skipped,
        seconds={name: round(value, 3) for name, value in sweep.seconds.items()},
        notes=[*sweep.notes, *failures, *_undefined_notes(sweep), *_search_notes(sweep)],
    )


def _undefined_notes(sweep: Sweep) -> list[str]:
    """A note if the selection metric is undefined for some trials."""
    found = [f"{one.trial.name}: {one.undefined}" for one in sweep.every if one.undefined]
    return [f"counts as failed: {named(found, 3)}"] if found else []


def _search_notes(sweep: Sweep) -> list[str]:
    """A note if trials were proposed with several versions of a library."""
    versions = sweep.ledger.proposed_with
    if len(versions) < 2:
        return []
    return [
        f"Trials were proposed with several versions of a library ({', '.join(versions)}), because the sweep was "
        "resumed with another one; a sweep with a single version may try other trials."
    ]


def _winner(sweep: Sweep, one: TrialRuns) -> Winner:
    gain = {name: _difference(one, baseline) for name, baseline in sweep.finished_baselines.items()}
    return Winner(
        **dict(_row(sweep, one)),
        method=one.trial.candidate,
        trial=one.trial.number,
        searched=one.trial.params,
        gain=gain,
    )


def _extended(sweep: Sweep) -> tuple[ExtendedRun | None, str]:
    """Extended training of the winner, or why there is none."""
    times, one, winner = sweep.spec.selection.extended_training, sweep.extended, sweep.winner
    if winner is None or times is None:
        return None, ""
    if one is None:
        return None, "the winning method has no training"
    found = sweep.extended_training
    if found is None:
        return None, "the extended run failed"
    row = ExtendedRun(
        **dict(_row(sweep, one)),
        times=times,
        objective=found.accuracy,
        change=found.change,
        trend=found.trend,
        over_start=found.over_start,
        test_change=_difference(one, winner, TrialRuns.ended),
    )
    return row, ""


def _methods(sweep: Sweep) -> list[MethodRow]:
    """The best trial of each candidate method, best first."""
    return [_method_row(sweep, one, sweep.methods[0]) for one in sweep.methods]


def _method_row(sweep: Sweep, one: TrialRuns, first: TrialRuns) -> MethodRow:
    name, metric = one.trial.candidate, sweep.spec.selection.metric
    tried = [other for other in sweep.searched if other.trial.candidate == name]
    again = [other for other in sweep.finalists if other.trial.candidate == name]
    behind = _difference(one, first)
    assert one.objective is not None, "a failed trial does not win"
    return MethodRow(
        **dict(_winner(sweep, one)),
        objective=one.objective,
        behind=behind,
        tied=one is first or (metric in behind and behind[metric].verdict == "tied"),
        trials=len(tried),
        failed_trials=sum(other.objective is None for other in tried),
        stopped_trials=sum(other.stopped is not None for other in tried),
        runs=len({record.key for other in (*tried, *again) for record in other.records}),
    )


def _difference(
    ours: TrialRuns, theirs: TrialRuns, read: Callable[[TrialRuns], Array] = lambda one: one.values
) -> dict[str, Comparison]:
    """`ours` minus `theirs` on the test set, by metric, paired by seed; a single run stands for every seed."""
    a, b = np.broadcast_arrays(read(ours), read(theirs))
    found = {
        score.name: oriented(paired(a[:, column], b[:, column]), score) for column, score in enumerate(ours.scores)
    }
    return {metric: comparison for metric, comparison in found.items() if comparison is not None}


def _row(sweep: Sweep, one: TrialRuns) -> Row:
    return Row(
        params=one.trial.method.model_dump(mode="json") | one.trial.training.model_dump(mode="json"),
        seeds=list(one.seeds),
        best_of=_seed_row(sweep.best_seed(one), one.scores),
        mean=Accuracies.of(one.values, one.scores),
        loma=Loma(
            mean=selection.mean_of_all([record.loma_mean for record in one.records]),
            cv=selection.mean_of_all([record.loma_cv for record in one.records]),
        ),
    )


def _seed_row(record: Record, scores: Sequence[Score]) -> SeedAccuracies:
    row = [math.nan] * len(scores) if record.failure is not None else selection.reported([record])[0]
    values = {score.name: _number(value) for score, value in zip(scores, row, strict=True)}
    val = None if record.val is None else record.val[0]
    return SeedAccuracies(**in_fields(values), seed=record.seed, val_acc_all=val, failure=record.failure)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
