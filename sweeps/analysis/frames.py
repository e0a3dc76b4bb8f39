"""Trials, runs, classes and epochs of a sweep as pandas DataFrames.

Accuracies are fractions of 1; unknown values are NaN. A searched value has the dotted path of its field as column, such
as `method.lr`. Rows are in the order of the sweep: baselines, search, finalists, extended training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from lt_train.metrics import Score, split_of
from sweeps.analysis import selection
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.store.records import Record

__all__ = ["class_values", "classes_frame", "curves_frame", "runs_frame", "trials_frame"]


def trials_frame(sweep: Sweep) -> pd.DataFrame:
    """One row per trial. Accuracies are means over its seeds, NaN if one of them failed.

    Columns: `trial` (unique name), `phase`, `method`, `number`, searched values, `status` (finished, stopped, failed),
    `objective`, `seeds` (their number), `epochs`, the accuracies `acc_all`, `acc_many`, `acc_medium`, `acc_few` and the
    sweep's further metrics on test, the same with the prefix `val_` if there is a validation set, `loma_mean`,
    `loma_cv`, `failure` and `finished_at` (UTC).
    """
    rows = []
    for one in sweep.every:
        records = one.records
        status = "failed" if one.failed else "finished" if one.stopped is None else "stopped"
        values = {name: selection.mean_of_all(column) for name, column in _columns(records, one.scores).items()}
        rows.append(
            _about(one)
            | {"status": status, "objective": _objective(one), "seeds": len(records)}
            | {"epochs": max(record.epochs for record in records)}
            | values
            | {"failure": one.failure}
            | {"finished_at": max(record.at_ms for record in records)}
        )
    return _frame(rows, sweep.every, after="number", time="finished_at")


def runs_frame(sweep: Sweep) -> pd.DataFrame:
    """One row per run: a trial with one seed.

    Columns: those of `trials_frame`, with `seed` instead of `seeds`, `epoch` (the selected one, from 1), `key` (the
    identity of the run) and `pack`. A run that several trials share is listed for each of them.
    """
    rows = []
    for one in sweep.every:
        columns = _columns(one.records, one.scores)
        for place, record in enumerate(one.records):
            rows.append(
                _about(one)
                | {"seed": record.seed, "status": record.status, "objective": _objective(one), "epochs": record.epochs}
                | {"epoch": None if record.epoch < 0 else record.epoch + 1}
                | {name: column[place] for name, column in columns.items()}
                | {"failure": record.failure, "key": record.key, "pack": record.pack, "finished_at": record.at_ms}
            )
    return _frame(rows, sweep.every, after="number", time="finished_at")


def classes_frame(sweep: Sweep, trials: Iterable[TrialRuns]) -> pd.DataFrame:
    """One row per class of each trial, means over its seeds on test.

    Columns: `trial`, `phase`, `method`, `class`, `split` (many, medium, few), `training_images`, `test_images`,
    `accuracy`, `loma`, `regularised_std`. The split and the numbers of images are missing without the feature bank.
    """
    parts = []
    for one in trials:
        part = class_values(one)
        if sweep.manifest is not None:
            part.insert(0, "test_images", sweep.manifest.test_counts)
            part.insert(0, "training_images", sweep.manifest.class_counts)
            part.insert(0, "split", [split_of(count) for count in sweep.manifest.split_counts])
        part.insert(0, "class", range(len(part)))
        for name in ("method", "phase", "trial"):
            part.insert(0, name, _about(one)[name])
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def class_values(trial: TrialRuns) -> pd.DataFrame:
    """`accuracy`, `loma` (Eq. 6) and `regularised_std` (Eq. 7) of every class, in order, means over seeds on test."""
    values = {
        "accuracy": trial.by_class("class_accuracy"),
        "loma": trial.by_class("loma"),
        "regularised_std": trial.by_class("regularised_std"),
    }
    return pd.DataFrame({name: by_seed.mean(axis=0) for name, by_seed in values.items()})


def curves_frame(trial: TrialRuns) -> pd.DataFrame:
    """One row per run and epoch of a trial: `seed`, `epoch` (from 1), `loss`, accuracies as in `trials_frame`."""
    sets = {"": trial.curves("test"), **({"val_": trial.curves("val")} if trial.has_val else {})}
    parts = []
    for place, (seed, loss) in enumerate(zip(trial.seeds, trial.losses(), strict=True)):
        columns: dict[str, Any] = {"seed": seed, "epoch": range(1, len(loss) + 1), "loss": loss}
        for prefix, curves in sets.items():
            columns |= {f"{prefix}{score.name}": curves[place][:, c] for c, score in enumerate(trial.scores)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _objective(one: TrialRuns) -> float | None:
    """None for extended training, which does not take part in the selection."""
    return None if one.trial.phase == "extended" else one.objective


def _about(one: TrialRuns) -> dict[str, Any]:
    trial = one.trial
    return {
        "trial": trial.name,
        "phase": trial.phase,
        "method": trial.display_name,
        "number": trial.number,
        **trial.params,
    }


def _columns(records: Sequence[Record], scores: Sequence[Score]) -> dict[str, list[float | None]]:
    """The numbers of runs by column."""
    columns: dict[str, list[float | None]] = {}
    for prefix, which in (("", "test"), ("val_", "val")):
        for place, score in enumerate(scores):
            found = [getattr(record, which) for record in records]
            if which == "test" or any(row is not None for row in found):
                columns[f"{prefix}{score.name}"] = [None if row is None else row[place] for row in found]
    for name in ("loma_mean", "loma_cv"):
        columns[name] = [getattr(record, name) for record in records]
    return columns


def _frame(rows: Sequence[dict[str, Any]], trials: Sequence[TrialRuns], *, after: str, time: str) -> pd.DataFrame:
    """The rows as a frame; searched values follow the column `after`, `time` is in milliseconds since 1970."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    paths = list(dict.fromkeys(path for one in trials for path in one.trial.params))
    others = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in paths]
    place = others.index(after) + 1
    frame = frame[[*others[:place], *paths, *others[place:]]]
    scores = {f"{prefix}{score.name}" for one in trials for score in one.scores for prefix in ("", "val_")}
    numbers = [name for name in frame.columns if name in scores or name.startswith("loma_")]
    types = dict.fromkeys([*numbers, "objective"], "float64") | ({"epoch": "Int64"} if "epoch" in frame else {})
    return frame.astype(types).assign(**{time: pd.to_datetime(frame[time], unit="ms", utc=True)})
