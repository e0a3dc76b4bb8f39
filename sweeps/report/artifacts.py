"""The files a finished sweep leaves for people and for tracking: resolved spec, tables as CSV, figures as PNG."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lt_train.features.bank import FeatureBank
from lt_train.metrics import SPLITS
from lt_train.storage import writing
from sweeps import selection
from sweeps.directory import SweepDirectory
from sweeps.ledger import Record
from sweeps.report.figures import by_class
from sweeps.result import Result
from sweeps.schedule import Schedule
from sweeps.spec import SweepSpec

__all__ = ["write_artifacts"]


def write_artifacts(
    directory: SweepDirectory, spec: SweepSpec, bank: FeatureBank, schedule: Schedule, result: Result
) -> None:
    """Write `artifacts/`: spec.yaml, result.json, trials.csv, per_class.csv, loma.png, class_accuracy.png.

    Raises:
        StorageError: the disk is full.
    """
    place = directory.artifacts
    counts = bank.class_counts.tolist()
    shown = _shown(schedule, result)
    with writing(place):
        place.mkdir(exist_ok=True)
        (place / "spec.yaml").write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
        (place / "result.json").write_text(directory.result.read_text())
        _csv(place / "trials.csv", *_trials(schedule, result))
        _csv(place / "per_class.csv", *_per_class(shown, counts))
        if shown:
            loma = {name: record.loma for name, record in shown.items()}
            by_class(loma, counts, f"{spec.name}: Logits Magnitude (Eq. 6) on test", "LoMa", place / "loma.png")
            accuracy = {name: record.class_accuracy for name, record in shown.items()}
            by_class(accuracy, counts, f"{spec.name}: accuracy by class", "accuracy", place / "class_accuracy.png")


def _shown(schedule: Schedule, result: Result) -> dict[str, Record]:
    """The best seed's record of each baseline and of the winner, by display name."""
    shown: dict[str, Record] = {}
    for name, row in result.baselines.items():
        records = schedule.finished[f"baseline-{name}"]
        shown[name] = next(record for record in records if record.seed == row.best_of.seed)
    trial = schedule.winner()
    if trial is not None and result.winner is not None:
        best = next(r for r in schedule.finished[trial.name] if r.seed == result.winner.best_of.seed)
        shown[f"{trial.method.kind} (winner)"] = best
    return shown


def _trials(schedule: Schedule, result: Result) -> tuple[list[str], Iterable[list[Any]]]:
    paths = list(result.trials[0].params) if result.trials else []
    header = ["phase", "number", *paths, "seed", "objective", *(f"acc_{split}" for split in SPLITS), "failure"]
    rows: list[list[Any]] = []
    for trial in schedule.trials.values():
        objective = schedule.objective(trial) if trial.phase != "baseline" else None
        label = trial.method.kind if trial.phase == "baseline" else trial.number
        for record in schedule.finished[trial.name]:
            accuracies = [""] * 4 if record.failure else selection.reported([record])[0].tolist()
            values = [trial.params.get(path, "") for path in paths]
            rows.append([trial.phase, label, *values, record.seed, objective, *accuracies, record.failure or ""])
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
