"""The files a finished sweep leaves for people and for tracking: resolved spec, tables as CSV, figures as PNG."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lt_train.core.io import writing
from lt_train.features.bank import FeatureBank
from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.result import Result, Row
from sweeps.config.spec import SweepSpec
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.reporting.figures import by_class
from sweeps.reporting.markdown import method_table
from sweeps.store.layout import SweepDirectory
from sweeps.store.ledger import Record

__all__ = ["write_artifacts"]

MOST_LINES = 8
"""Lines that a figure can hold and still be read; the table beside it has all of them."""


def write_artifacts(
    directory: SweepDirectory, spec: SweepSpec, bank: FeatureBank, queue: TrialQueue, result: Result
) -> None:
    """Write `artifacts/`: spec.yaml, result.json, table.md, trials.csv, per_class.csv, loma.png, class_accuracy.png.

    Raises:
        StorageError: the disk is full.
    """
    place = directory.artifacts
    counts = bank.class_counts.tolist()
    shown = _shown(queue, result)
    with writing(place):
        place.mkdir(exist_ok=True)
        (place / "spec.yaml").write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
        (place / "result.json").write_text(directory.result.read_text())
        (place / "table.md").write_text(method_table(result))
        _csv(place / "trials.csv", *_trials(queue))
        _csv(place / "per_class.csv", *_per_class(shown, counts))
        if shown:
            drawn = dict(list(shown.items())[:MOST_LINES])
            loma = {name: record.loma for name, record in drawn.items()}
            by_class(loma, counts, f"{spec.name}: Logits Magnitude (Eq. 6) on test", "LoMa", place / "loma.png")
            accuracy = {name: record.class_accuracy for name, record in drawn.items()}
            by_class(accuracy, counts, f"{spec.name}: accuracy by class", "accuracy", place / "class_accuracy.png")


def _shown(queue: TrialQueue, result: Result) -> dict[str, Record]:
    """The best seed's record of each baseline and of each method's winner, these best first, by display name."""
    shown: dict[str, Record] = {}
    for name, row in result.baselines.items():
        shown[name] = _best(queue, f"baseline-{name}", row)
    for place, row in enumerate(result.methods):
        trial = queue.winner(row.method)
        assert trial is not None, "it has a row because it has a winner"
        record = _best(queue, trial.name, row)
        if place == 0:
            shown[f"{row.method} (winner)"] = record
        elif shown.get(row.method) != record:  # else the baseline is this very run
            shown[f"{row.method} (best)" if row.method in shown else row.method] = record
    return shown


def _best(queue: TrialQueue, trial: str, row: Row) -> Record:
    return next(record for record in queue.finished[trial] if record.seed == row.best_of.seed)


def _trials(queue: TrialQueue) -> tuple[list[str], Iterable[list[Any]]]:
    paths = list(dict.fromkeys(path for trial in queue.in_order() for path in trial.params))
    columns = [f"acc_{split}" for split in SPLITS]
    header = ["phase", "method", "number", *paths, "seed", "objective", *columns, "stopped", "failure"]
    rows: list[list[Any]] = []
    for trial in queue.in_order():
        objective = queue.objective(trial) if trial.phase != "baseline" else None
        for record in queue.finished[trial.name]:
            accuracies = [""] * 4 if record.failure else selection.reported([record])[0].tolist()
            values = [trial.params.get(path, "") for path in paths]
            about = [trial.phase, trial.called, trial.number, *values, record.seed, objective]
            rows.append([*about, *accuracies, record.stopped or "", record.failure or ""])
    return header, rows


def _per_class(shown: dict[str, Record], counts: list[int]) -> tuple[list[str], Iterable[list[Any]]]:
    header = ["class", "training_images"]
    for name in shown:
        header += [f"{name} accuracy", f"{name} LoMa", f"{name} regularised_std"]
    rows = []
    for k, count in enumerate(counts):
        row: list[Any] = [k, count]
        for record in shown.values():
            row += [record.class_accuracy[k], record.loma[k], record.regularised_std[k]]
        rows.append(row)
    return header, rows


def _csv(file: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
