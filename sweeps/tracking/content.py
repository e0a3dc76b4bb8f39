"""Builds what trackers receive: display names, metrics, curves, notes, table columns, datasets, and the champion.

The champion is stored as an exported graph only, because loading a graph runs no code of the model and does not need
this package.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel

from lt_train.core.errors import first_line
from lt_train.features.bank import FeatureBank
from lt_train.features.files import read_manifest
from lt_train.metrics import ACCURACIES, SPLITS, Score
from sweeps.analysis import selection
from sweeps.analysis.frames import class_values
from sweeps.analysis.image_classifier import example_images, exported_graph
from sweeps.analysis.labels import protocol, ranked_by, short_params
from sweeps.analysis.selection import TrialRuns
from sweeps.config.interfaces import Champion, DatasetInfo, ImageModel, RunsView, TrackedTrial
from sweeps.config.methods import Candidate
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Trial
from sweeps.search.base import LogUniform

__all__ = [
    "champion_digest",
    "dataset_infos",
    "exported",
    "runs_view",
    "stage1_series",
    "tracked_trial",
]


def dotted_params(spec: BaseModel) -> dict[str, Any]:
    """Every value of a spec by dotted path, for example `head.scale`, without those that are None."""
    found: dict[str, Any] = {}
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            found |= {f"{name}.{path}": inner for path, inner in dotted_params(value).items()}
        elif value is not None:
            found[name] = value
    return found


def tracked_trial(runs: TrialRuns, spec: SweepSpec) -> TrackedTrial:
    """What trackers show of a finished trial: means over its seeds, values by seed, and curves by epoch."""
    trial, records = runs.trial, runs.records
    succeeded = [record for record in records if record.failure is None]
    metrics: dict[str, float] = {}
    series: dict[str, list[tuple[int, float]]] = {}
    tables: dict[str, pd.DataFrame] = {}
    seed_runs: list[tuple[int, dict[str, float]]] = []
    if not runs.failed:
        values = runs.values
        metrics |= _named("", runs.scores, values.mean(axis=0))
        if runs.has_val:
            metrics |= _named("val_", runs.scores, selection.reported(records, "val").mean(axis=0))
        metrics |= _without_nan(
            {name: selection.mean_of_all([getattr(r, name) for r in records]) for name in ("loma_mean", "loma_cv")}
        )
        # Extended training does not compete, so it has no objective where trials are sorted by it.
        if runs.objective is not None and trial.phase != "extended":
            metrics["objective"] = runs.objective
        for column, score in enumerate(runs.scores):
            points = [(record.seed, float(v)) for record, v in zip(records, values[:, column], strict=True)]
            series[f"seed_{score.name}"] = [point for point in points if not np.isnan(point[1])]
        series |= _curves(runs)
        tables["per_class"] = class_values(runs).rename_axis("class").reset_index()
    for record in succeeded:
        row = _named("", runs.scores, selection.reported([record])[0])
        seed_runs.append((record.seed, row | _without_nan({"loma_mean": record.loma_mean, "loma_cv": record.loma_cv})))
    title = f"{trial.display_name} {short_params(trial.params)}".strip()
    settings = dotted_params(trial.method) | dotted_params(trial.training)
    return TrackedTrial(
        key=trial.name,
        name=f"{title} ({trial.phase})" if trial.phase != "search" else title,
        phase=trial.phase,
        params={"method": trial.display_name, **settings},
        metrics=metrics,
        series={key: points for key, points in series.items() if points},
        tables=tables,
        failed=runs.failed,
        finished_ms=max(record.at_ms for record in records),
        seed_runs=seed_runs,
        logarithms=_logarithms(trial, spec),
        stopped=runs.stopped,
        note=_trial_note(runs, spec),
    )


def runs_view(spec: SweepSpec, has_val: bool) -> RunsView:
    """Columns and charts of a sweep's runs: the selection metric, scores on test and val, and searched parameters."""
    rank = ranked_by(spec)
    on_test = [score.name for score in spec.scores]
    on_val = [f"val_{name}" for name in on_test] if has_val else []
    searched = [path for candidate in spec.candidates() for path in candidate.space]
    return RunsView(
        rank=rank,
        metrics=list(dict.fromkeys([rank, *on_test, *on_val])),
        searched=[_inner(path) for path in dict.fromkeys(searched)],
        charted=["acc_few", "acc_all"],
        searched_by={
            candidate.name: [_as_charted(path, _logarithmic(candidate)) for path in candidate.space]
            for candidate in spec.candidates()
        },
    )


def dataset_infos(spec: SweepSpec, bank: FeatureBank) -> list[DatasetInfo]:
    """The parts of the data that a bank was extracted from; empty for a bank in memory."""
    if bank.path is None:
        return []
    digests = read_manifest(bank.path).inputs["digests"]
    parts = {
        "training": ("train", bank.train_features, bank.train_labels),
        "test": ("test", bank.test.features, bank.test.labels),
    }
    if bank.val is not None:
        parts["validation"] = ("val", bank.val.features, bank.val.labels)
    return [
        DatasetInfo(
            name=spec.dataset.kind,
            part=part,
            digest=digests[name],
            source=spec.dataset.identity(),
            shape=tuple(features.shape),
            class_counts=torch.bincount(labels, minlength=bank.num_classes).tolist(),
        )
        for part, (name, features, labels) in parts.items()
    ]


def _inner(path: str) -> str:
    """A searched path without its section, as in the parameters of a run."""
    return path.partition(".")[2]


def _logarithmic(candidate: Candidate) -> set[str]:
    return {path for path, dimension in candidate.space.items() if isinstance(dimension, LogUniform)}


def _logarithms(trial: Trial, spec: SweepSpec) -> dict[str, float]:
    """Logarithms of the parameters that the trial's own candidate method searches on a logarithmic scale.

    Another candidate may search the same parameter on a linear scale that includes 0.
    """
    own = next((one for one in spec.candidates() if one.name == trial.candidate), None)
    logarithmic = set() if own is None else _logarithmic(own)
    return {
        _as_charted(path, logarithmic): round(math.log10(value), 4)
        for path, value in trial.params.items()
        if path in logarithmic
    }


def _as_charted(path: str, logarithmic: set[str]) -> str:
    """The parameter that a chart without logarithmic axes shows."""
    return f"log10_{_inner(path)}" if path in logarithmic else _inner(path)


def _trial_note(runs: TrialRuns, spec: SweepSpec) -> str:
    """Description of a trial and of its metrics, in Markdown."""
    trial, records = runs.trial, runs.records
    what = {
        "search": "a trial of the search",
        "baseline": "a baseline",
        "finalist": "a finalist, on new seeds",
        "extended": "extended training of the winner, which is not ranked",
    }
    values = [
        f"`{path}` {value:.6g}" if isinstance(value, float) else f"`{path}` {value}"
        for path, value in trial.params.items()
    ]
    lines = [
        f"**{trial.display_name}**, {what[trial.phase]}" + (f": {', '.join(values)}" if values else ""),
        "",
        f"Ranked by {protocol(spec)}: `{ranked_by(spec)}`. `acc_*`: top-1 accuracy on test, mean over its seeds, "
        "over all classes and by class size; `val_acc_*`: on validation, with equal weight for every class; "
        "`loma_*`: Logits Magnitude, mean and spread over classes. `seed_*` has one step per seed, `epoch_*` one per "
        "epoch.",
    ]
    if metrics := [f"`{score.name}`" for score in runs.scores[len(ACCURACIES) :]]:
        lines[-1] += f" Further metrics, with `val_` on validation: {', '.join(metrics)}."
    if runs.undefined:
        lines += ["", f"{runs.undefined}, so this trial counts as failed."]
    if runs.stopped is not None:
        lines += ["", f"Stopped early after epoch {runs.stopped}; its metrics are those of that epoch."]
    failed = [record for record in records if record.failure is not None]
    if failed:
        lines += ["", f"{len(failed)} of {len(records)} seeds failed, the first with: {failed[0].failure}"]
    return "\n".join(lines)


def stage1_series(record: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """The training curve of a backbone by epoch, and its accuracy on test by split at the last epoch.

    Args:
        record: `FeatureBank.record`, which may be empty.
    """
    curve = record.get("curve", [])
    series: dict[str, list[tuple[int, float | None]]] = {
        f"stage1_{short}": [(point["epoch"], point[name]) for point in curve]
        for short, name in (("loss", "loss"), ("acc", "accuracy"), ("lr", "lr"))
    }
    for split in SPLITS:
        series[f"stage1_val_acc_{split}"] = [(point["epoch"], point["val"][split]) for point in curve if "val" in point]
        test = record.get("accuracy", {}).get(split)
        series[f"stage1_test_acc_{split}"] = [(curve[-1]["epoch"], test)] if curve else []
    known = {name: [(step, value) for step, value in points if value is not None] for name, points in series.items()}
    return {name: points for name, points in known.items() if points}


def _curves(runs: TrialRuns) -> dict[str, list[tuple[int, float]]]:
    """Scores and loss by epoch, starting at 1, mean over seeds."""
    curves: dict[str, list[tuple[int, float]]] = {}
    stacks = {"epoch_": runs.curves("test")}
    if runs.has_val:
        stacks["epoch_val_"] = runs.curves("val")
    for prefix, stack in stacks.items():
        mean_EC = stack.mean(axis=0)
        for column, score in enumerate(runs.scores):
            curves[f"{prefix}{score.name}"] = _points(mean_EC[:, column])
    curves["epoch_loss"] = _points(runs.losses().mean(axis=0))
    return curves


def _points(values: Any) -> list[tuple[int, float]]:
    return [(epoch, float(value)) for epoch, value in enumerate(values, start=1) if not np.isnan(value)]


def _named(prefix: str, scores: Sequence[Score], row: Any) -> dict[str, float]:
    names = [f"{prefix}{score.name}" for score in scores]
    return _without_nan({name: round(float(value), 6) for name, value in zip(names, row, strict=True)})


def _without_nan(values: dict[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None and not np.isnan(value)}


logger = logging.getLogger(__name__)


def champion_digest(champion: Champion, variant: str) -> str:
    """Digest of everything that determines the models: the head's weights, its bank, and what is logged of it."""
    hasher = hashlib.sha256(f"{champion.bank} {variant}".encode())
    for name, tensor in champion.classifier.state_dict().items():
        hasher.update(name.encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()[:16]


def exported(images: ImageModel) -> torch.export.ExportedProgram | None:
    """The model as a graph with the same logits, for any number of images; None, with a warning, if that fails."""
    try:
        return exported_graph(images.module, *example_images(images.shape))
    except Exception as error:  # of torch, or of the model's own code
        logger.warning("the champion is logged without its backbone, which torch cannot export: %s", first_line(error))
        return None
