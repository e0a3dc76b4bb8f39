"""The model card of an export: Markdown with the metadata block of Hugging Face.

It has everything that determines the model, and no path of the machine that wrote it.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import numpy as np
import torch
import yaml

from lt_train.core.imports import installed_version
from lt_train.metrics import ACCURACIES, correct_per_class, evaluate, split_accuracy, split_masks
from sweeps.analysis.labels import protocol, role, seeds_text, unfinished
from sweeps.analysis.result import Accuracies
from sweeps.analysis.selection import reported
from sweeps.reporting.export.formats import Export
from sweeps.reporting.export.trained import TrainedHead
from sweeps.reporting.model import Cell, Column, Table, as_markdown, score_columns

__all__ = ["CARD", "GENERATOR", "model_card"]

CARD = "README.md"

GENERATOR = "<!-- written by lt-sweep export -->"
"""Marks a directory as an export, which may be replaced."""


def model_card(head: TrainedHead, export: Export, format: str, classes: str) -> str:
    """The text of the card.

    Args:
        head: the exported head.
        export: its file.
        format: of the file.
        classes: name of the file with the names of the classes; empty if they are unknown.
    """
    sweep, (num_classes, dim) = head.sweep, head.dims
    numbered = f"the names of the classes are the lines of `{classes}`" if classes else "classes are numbers from 0"
    parts = [
        _metadata(head, format),
        GENERATOR,
        f"# {sweep.spec.name}: {head.name}",
        f"A classifier of {num_classes} classes for long-tailed data: {_network(head, dim)}. Its classifier was "
        f"re-trained on frozen features by the method `{head.trial.trial.method.kind}`.",
        *_cautions(head),
        "## Use",
        f"`{export.file}` takes {export.takes}, and returns logits `[N, {num_classes}]`; {numbered}.",
        f"```python\n{export.code}```",
        "## Accuracy",
        as_markdown(_accuracies(head, export), heading="").strip(),
        "## Method",
        _yaml(_settings(head)),
        "## Data and backbone",
        _yaml(_sources(head)),
        "## Versions",
        _yaml(_versions(export)),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(head: TrainedHead, format: str) -> str:
    task = "tabular-classification" if head.sweep.spec.backbone is None else "image-classification"
    metrics = list[dict[str, Any]]()
    for score, value in zip(head.trial.scores, reported([head.record])[0].tolist(), strict=True):
        is_accuracy = score in ACCURACIES
        type_ = "accuracy" if is_accuracy else score.name
        name = f"top-1 accuracy, {score.title} classes" if is_accuracy else score.name
        if not np.isnan(value):
            metrics.append({"type": type_, "name": name, "value": round(value, 6)})
    kind = head.sweep.spec.dataset.kind
    document = {
        "library_name": "onnx" if format == "onnx" else "pytorch",
        "pipeline_tag": task,
        "tags": ["long-tailed-recognition", "classifier-retraining", head.trial.trial.method.kind],
        "model-index": [
            {
                "name": head.sweep.spec.name,
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {"name": kind, "type": kind, "split": "test"},
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(document, sort_keys=False)}---"


def _network(head: TrainedHead, dim: int) -> str:
    if head.sweep.spec.backbone is None:
        return f"a head on {dim} given features"
    kind = getattr(head.sweep.spec.backbone, "factory", head.sweep.spec.backbone.kind)
    return f"the backbone `{kind}` with {dim} features, and a head on them"


def _cautions(head: TrainedHead) -> list[str]:
    sweep, chosen, cautions = head.sweep, head.sweep.spec.selection, list[str]()
    if sweep.state != "finished":
        cautions.append(f"The sweep is unfinished. {unfinished(sweep)}")
    if head.trial is not sweep.winner:
        cautions.append(f"This is not the {role(sweep)} of the sweep.")
    if chosen.on == "test":
        cautions.append("Selected on the test set: its accuracies are optimistic.")
    return [f"> **Note:** {text}" for text in cautions]


def _accuracies(head: TrainedHead, export: Export) -> Table:
    """Scores on test: of this head as the sweep tested it and, where it differs, as exported; means over seeds."""
    sweep, trial = head.sweep, head.trial
    tested = [None if np.isnan(value) else float(value) for value in reported([head.record])[0]]
    rows: list[tuple[Cell, ...]] = []
    note = (
        "Top-1 accuracy on the test set in %, over all classes and by class size (training images: many > 100, few < "
        "20)."
    )
    if metrics := sweep.spec.metrics:
        note += f" Further metrics of the sweep: {', '.join(one.kind for one in metrics)}."
    views = _test_views(head)
    if views > 1 and not export.mirrored:
        images = sweep.spec.backbone is not None
        averaged = "an image and its mirror image" if images else f"{views} views of a test image"
        rows.append((f"this model, mean over {averaged}", *tested))
        one_view = _one_view(head) or [None] * len(tested)
        rows.append((f"this model, {'one image' if images else 'first view'}", *one_view))
        note += f" The sweep averages logits over {averaged}; this file computes those of one."
    else:
        rows.append(("this model", *tested))
    if len(trial.records) > 1:
        rows.append((f"mean of {len(trial.records)} seeds", *Accuracies.of(trial.values, trial.scores).by_score()))
        note += (
            f" This model is the best of {seeds_text(len(trial.records))} by the selection metric (seed "
            f"{head.record.seed}). The mean over seeds, with the half width of its 95% interval, is what to expect of "
            "another seed; it does not cover other backbones or test images."
        )
    start = sweep.stage1_head
    if start is not None and start is not trial:
        rows.append(("before re-training", *Accuracies.of(start.values, start.scores).by_score()))
    return Table("accuracy", "Accuracy", (Column("test accuracy"), *score_columns(trial.scores)), tuple(rows), note)


def _test_views(head: TrainedHead) -> int:
    """The number of views over which the sweep averages logits on test; 1 if unknown."""
    sweep = head.sweep
    if sweep.spec.backbone is not None:
        return 1 if sweep.manifest is None else 1 + sweep.manifest.inputs["test_flip"]
    return 1 if sweep.test is None else len(sweep.test.features)


@torch.inference_mode()
def _one_view(head: TrainedHead) -> list[float | None] | None:
    """Scores for test images in one view; None if the test features are not available."""
    test, manifest = head.sweep.test, head.sweep.manifest
    if test is None or manifest is None:
        return None
    logits = torch.cat([head.classifier(part.float()) for part in test.features[0].split(4096)])
    correct = correct_per_class(logits, test.labels, manifest.num_classes)
    masks = split_masks(torch.tensor(manifest.split_counts))
    found = split_accuracy(correct, torch.tensor(manifest.test_counts), masks).tolist()
    found += evaluate(head.sweep.spec.metrics, logits, test.labels, torch.tensor(manifest.class_counts))
    return [None if np.isnan(value) else value for value in found]


def _settings(head: TrainedHead) -> dict[str, Any]:
    trial = head.trial.trial
    training = {"training": trial.training.model_dump(mode="json")} if trial.method.trains else {}
    return {
        "method": trial.method.model_dump(mode="json"),
        **training,
        "trial": trial.name,
        "seeds": list(head.trial.seeds),
        "exported_seed": head.record.seed,
        "selected_by": protocol(head.sweep.spec),
    }


def _sources(head: TrainedHead) -> dict[str, Any]:
    manifest, sweep = head.sweep.manifest, head.sweep
    found: dict[str, Any] = {"dataset": sweep.spec.dataset.identity(), "features": sweep.bank}
    if manifest is not None:
        known = ("backbone", "checkpoint", "transform", "test_flip", "dtype", "code")
        found |= {name: manifest.inputs[name] for name in known if name in manifest.inputs}
        found |= {"training_images_per_class": manifest.class_counts, "notes": list(manifest.notes)}
    return found


def _versions(export: Export) -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in ("torch", *export.libraries)}
    return {"longtail-sweeps": installed_version(), "python": platform.python_version(), **libraries}


def _yaml(document: dict[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)}```"
