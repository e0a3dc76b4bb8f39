"""What the commands of `lt-train` share: components from words, classifiers from files, and printed results."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_train.core.errors import CheckpointError, UserError
from lt_train.features.bank import FeatureBank
from lt_train.methods.adjustment import Vanilla
from lt_train.methods.base import METHODS
from lt_train.methods.heads.base import load_head
from lt_train.metrics import SPLITS, split_accuracy, split_masks
from lt_train.retrain.base import Run, RunResult, SelectedHead

_log = logging.getLogger(__name__)


def load_classifier(bank: FeatureBank, file: Path | None) -> torch.nn.Module:
    """The classifier in a head file, or the stage-1 head of the bank if no file is given."""
    if file is None:
        if bank.head is None:
            raise UserError("this bank has no stage-1 head to evaluate; pass a head file with --head")
        return Vanilla().classifier({"weight": bank.head[0], "bias": bank.head[1]})
    state, about = load_head(file)
    try:
        method = METHODS.parse(about["method"])
        classifier, shape = method.classifier(state), method.state_shape(state)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"head {file} does not match the method that it names ({error})") from None
    if shape != (bank.num_classes, bank.feature_dim):
        raise CheckpointError(
            f"head {file} is for another bank: its weight is {list(shape)} where this bank needs "
            f"[{bank.num_classes}, {bank.feature_dim}]"
        )
    if about.get("bank") != bank.fingerprint:
        _log.warning("head %s was trained on bank %s, not on this one (%s)", file, about.get("bank"), bank.fingerprint)
    return classifier


def run_row(run: Run, result: RunResult, on: str) -> dict[str, Any]:
    """One run as JSON: the accuracies of the selected epoch, or null for a failed run."""
    if result.kept is None:
        return {"seed": run.seed, "epoch": None, "selected_on": None, "test": None, "failure": result.failure}
    epoch = result.kept.epoch
    curve = result.test_accuracy if on == "test" or result.val_accuracy is None else result.val_accuracy
    return {
        "seed": run.seed,
        "epoch": epoch + 1,
        "selected_on": float(curve[epoch, 0]),
        "test": _by_split(result.test_accuracy[epoch]),
        "failure": None,
    }


def _by_split(accuracies: Iterable[float]) -> dict[str, float | None]:
    return {split: _number(value) for split, value in zip(SPLITS, accuracies, strict=True)}


def means_by_split(runs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean test accuracy over finished runs, per split; None for a split without test images."""
    values = [[math.nan if one is None else one for one in run["test"].values()] for run in runs]
    return _by_split(float(np.mean(of_one_split)) for of_one_split in zip(*values, strict=True))


def measures(bank: FeatureBank, head: SelectedHead) -> dict[str, dict[str, float | None]]:
    """Accuracy, LoMa and regularised std of a head on the test set, per split."""
    totals = torch.bincount(bank.test.labels, minlength=bank.num_classes)
    correct = torch.from_numpy(np.nan_to_num(head.class_accuracy)) * totals
    masks = split_masks(bank.split_counts)

    def mean_by_split(values: Any) -> dict[str, float | None]:
        known = [values[mask & ~np.isnan(values)] for mask in masks.numpy()]
        return _by_split([float(one.mean()) if one.size else math.nan for one in known])

    return {
        "accuracy": _by_split(split_accuracy(correct, totals, masks).tolist()),
        "loma": mean_by_split(head.loma),
        "regularised_std": mean_by_split(head.regularised_std),
    }


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


def percent(fraction: float | None) -> str:
    """A fraction as a percentage."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def percents(accuracy: Mapping[str, float | None] | None) -> list[str]:
    """The accuracies of all splits as percentages; of a failed run, dashes."""
    return [percent(accuracy[split] if accuracy else None) for split in SPLITS]


def print_table(document: dict[str, Any], columns: list[str], rows: list[list[str]], *, as_json: bool) -> None:
    """Print `rows`, or `document` with `as_json`."""
    if as_json:
        print(json.dumps(document, allow_nan=False))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def component(words: Sequence[str]) -> dict[str, Any]:
    """`["los", "lr=5e-3"]` as `{"kind": "los", "lr": 5e-3}`.

    A value that is not JSON is a string, but lists and mappings must be JSON.
    """
    document: dict[str, Any] = {"kind": words[0]}
    for word in words[1:]:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"parameters of {words[0]} must be written as name=value, got {word!r}")
        if name == "kind":
            raise UserError(f"the kind is {words[0]}, got also {word}; give the kind once, as the first word")
        try:
            document[name] = json.loads(text)
        except ValueError:
            if text.startswith(("[", "{")):
                example = '["a", "b"]' if text.startswith("[") else '{"a": true}'
                raise UserError(f"{name}: must be JSON, as in '{name}={example}', got {text}") from None
            document[name] = text
    return document
