"""The commands of `lt-train`: flags to calls of the rooms, and their results to standard output.

Notes and progress go to standard error, so that `--json` and a bank's path can be read by a program. Nothing is
computed here; `lt_train.cli.main` owns the flags.
"""

from __future__ import annotations

import argparse
import json
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

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core.device import check_device
from lt_train.core.errors import CheckpointError, DataError, LongtailError, UserError
from lt_train.core.io import check_output
from lt_train.core.progress import progress
from lt_train.datasets import check as checking
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.features.bank import FeatureBank
from lt_train.features.extract import FeaturesSpec, build_bank
from lt_train.features.files import open_bank
from lt_train.features.shards import Throughput
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.methods.head_file import load_head, save_head
from lt_train.metrics.accuracy import SPLITS, split_accuracy, split_masks
from lt_train.pretrain.base import RECIPES
from lt_train.pretrain.train import train_backbone
from lt_train.retrain import fused, reference
from lt_train.retrain.base import EpochSelection, Run, RunResult

__all__ = ["backbone", "data_check", "evaluate", "features", "retrain"]


def data_check(arguments: argparse.Namespace) -> None:
    """Print what a dataset holds, and end with 2 where something is wrong with it."""
    if arguments.plot:
        check_output(arguments.plot)
    dataset = DATASETS.parse(_kind(arguments.dataset))
    with progress("looking at every image", unit="image") as report:
        found = dataset.inspect(report)
    _say(found.notes)
    document = checking.document(found)
    if arguments.plot and found.counts is not None:
        checking.plot(found.counts.tolist(), arguments.plot)
    if arguments.json:
        _print(arguments, document, [], [])
    else:
        console = Console(soft_wrap=not sys.stdout.isatty())
        for line in checking.lines(document, console.width, plain=not sys.stdout.isatty()):
            console.print(Text(line))
    if found.findings:
        raise DataError(f"dataset {dataset.kind} is not as it must be: {len(found.findings)} findings")


def backbone(arguments: argparse.Namespace) -> None:
    """Train a backbone and print its accuracy on test."""
    check_device(arguments.device)
    check_output(arguments.out)
    dataset = DATASETS.parse(_kind(arguments.dataset))
    backbone, recipe = BACKBONES.parse(_kind(arguments.backbone)), RECIPES.parse(_kind(arguments.recipe))
    data = dataset.load()
    if not isinstance(data, ImageData):
        raise UserError(f"dataset {dataset.kind} brings features; a backbone is trained on images only")
    _say(data.notes)
    with progress(f"training {backbone.kind}") as report:
        train_backbone(
            data,
            backbone,
            recipe,
            arguments.out,
            seed=arguments.seed,
            device=arguments.device,
            about={"dataset": dataset.model_dump(mode="json")},
            report=report,
            save_every=arguments.save_every,
        )
    trained = load_checkpoint(arguments.out)[1]
    accuracy = trained["accuracy"]
    document = {
        "checkpoint": str(arguments.out),
        "accuracy": accuracy,
        "curve": trained["curve"],
        "notes": list(data.notes),
    }
    _print(arguments, document, ["checkpoint", *SPLITS], [[str(arguments.out), *_percents(accuracy)]])


def features(arguments: argparse.Namespace) -> None:
    """Make a bank, or find it, and print its path."""
    check_device(arguments.device)
    dataset = DATASETS.parse(_kind(arguments.dataset))
    features = FeaturesSpec(
        views=arguments.views,
        test_flip=False if arguments.no_test_flip else None,
        dtype=arguments.dtype,
        unreadable=arguments.unreadable,
    )
    source = arguments.checkpoint if arguments.backbone is None else BACKBONES.parse(_kind(arguments.backbone))
    data = dataset.load()
    _say(data.notes)
    pace = Throughput()
    with progress("extracting features", unit="image") as report:
        path = build_bank(
            dataset, source, features, arguments.store, device=arguments.device, report=report, data=data, pace=pace
        )
    bank = open_bank(path)
    _say(note for note in bank.notes if note not in data.notes)
    document = {
        "bank": str(path),
        "train": list(bank.train_features.shape),
        "val": None if bank.val is None else list(bank.val.features.shape),
        "test": list(bank.test.features.shape),
        "classes": bank.num_classes,
        "dtype": str(bank.train_features.dtype).removeprefix("torch."),
        "notes": list(bank.notes),
        "pace": pace.document() if pace.images else None,  # None for a bank that was there
    }
    if arguments.json:
        _print(arguments, document, [], [])
    else:  # the path alone, so that a shell can take it
        print(path)


def retrain(arguments: argparse.Namespace) -> None:
    """Re-train on a bank with several seeds and print what they reach."""
    check_device(arguments.device)
    if arguments.out:
        check_output(arguments.out)
    method = METHODS.parse(_kind(arguments.method))
    training = TrainingSpec(epochs=arguments.epochs, batch_size=arguments.batch_size)
    bank = open_bank(arguments.bank)
    _say(bank.notes)
    on = arguments.select
    if on == "val" and bank.val is None:
        raise UserError("--select val needs a validation set, and this bank has none; use --select test")
    runs = [Run(method, training, seed) for seed in range(arguments.seeds)]
    fit = {"fused": fused, "reference": reference}[arguments.engine].fit
    results = fit(bank, runs, arguments.device, EpochSelection(epoch=arguments.epoch, on=on))
    rows = [_row(run, result, on) for run, result in zip(runs, results, strict=True)]
    finished = [(row, result.kept) for row, result in zip(rows, results, strict=True) if result.kept is not None]
    failures = [f"seed {row['seed']}: {row['failure']}" for row in rows if row["failure"] is not None]
    failed = f"{len(failures)} of {len(runs)} seeds failed ({'; '.join(failures)})"
    if not finished:
        raise LongtailError(failed)
    if failures:
        _say([f"{failed}; no mean is shown, because it would be over fewer seeds"])
    best, kept = max(finished, key=lambda pair: pair[0]["selected_on"])
    if arguments.out:
        about = {"bank": bank.fingerprint, "method": method.model_dump(mode="json"), "seed": best["seed"]}
        save_head(arguments.out, {name: torch.from_numpy(array) for name, array in kept.state.items()}, about)
    mean = {
        split: None if failures else _number(np.mean([_or_nan(row["test"][split]) for row, _ in finished]))
        for split in SPLITS
    }
    document = {
        "runs": rows,
        "mean": mean,
        "failed": len(failures),
        "on": on,
        "best_seed": best["seed"],
        "head": str(arguments.out) if arguments.out else None,
    }
    lines = [
        [
            str(row["seed"]),
            str(row["epoch"] or "-"),
            _percent(row["selected_on"]),
            *_percents(row["test"]),
            row["failure"] or "",
        ]
        for row in rows
    ]
    lines.append(["mean", "", "", *_percents(mean), ""])
    _print(arguments, document, ["seed", "epoch", on, *(f"test {split}" for split in SPLITS), "failure"], lines)


def evaluate(arguments: argparse.Namespace) -> None:
    """Print what a head does on a bank's test set."""
    check_device(arguments.device)
    bank = open_bank(arguments.bank)
    _say(bank.notes)
    bank.check()
    kept = reference.measure(bank, _classifier(bank, arguments.head).to(arguments.device))
    totals = torch.bincount(bank.test.labels, minlength=bank.num_classes)
    correct = torch.from_numpy(np.nan_to_num(kept.class_accuracy)) * totals
    masks = split_masks(bank.split_counts).numpy()
    measured = {
        "accuracy": _by_split(split_accuracy(correct, totals, torch.from_numpy(masks)).tolist()),
        "loma": {split: _mean_over(kept.loma, mask) for split, mask in zip(SPLITS, masks, strict=True)},
        "regularised_std": {
            split: _mean_over(kept.regularised_std, mask) for split, mask in zip(SPLITS, masks, strict=True)
        },
    }
    lines = [
        ["accuracy", *_percents(measured["accuracy"])],
        *(
            [name, *("-" if x is None else f"{x:.4f}" for x in measured[name].values())]
            for name in ("loma", "regularised_std")
        ),
    ]
    _print(arguments, measured, ["test", *SPLITS], lines)


def _classifier(bank: FeatureBank, file: Path | None) -> torch.nn.Module:
    """The classifier in a head file, or without one the bank's own."""
    if file is None:
        if bank.head is None:
            raise UserError("this bank has no stage-1 head to evaluate; give one with --head")
        return METHODS.parse({"kind": "vanilla"}).classifier({"weight": bank.head[0], "bias": bank.head[1]})
    state, about = load_head(file)
    try:
        classifier = METHODS.parse(about["method"]).classifier(state)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"head {file} does not hold the classifier that it names ({error})") from None
    shape = next(list(tensor.shape) for tensor in state.values() if tensor.ndim == 2)
    if shape != [bank.num_classes, bank.feature_dim]:
        raise CheckpointError(
            f"head {file} is for another bank: its weight is {shape} where this bank needs "
            f"[{bank.num_classes}, {bank.feature_dim}]"
        )
    if about.get("bank") != bank.fingerprint:
        _say([f"head {file} was trained on another bank ({about.get('bank')}) than this one ({bank.fingerprint})"])
    return classifier


def _row(run: Run, result: RunResult, on: str) -> dict[str, Any]:
    """One run as JSON: the accuracies of the epoch that counts, null throughout when it failed."""
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


def _mean_over(values: Any, mask: Any) -> float | None:
    """Mean of the classes in `mask`, NaN classes left out; None when nothing is left."""
    left = values[mask & ~np.isnan(values)]
    return float(left.mean()) if left.size else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def _percents(accuracy: Mapping[str, float | None] | None) -> list[str]:
    return [_percent(accuracy[split] if accuracy else None) for split in SPLITS]


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _print(arguments: argparse.Namespace, document: dict[str, Any], columns: list[str], rows: list[list[str]]) -> None:
    if arguments.json:
        print(json.dumps(document, allow_nan=False))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def _kind(words: Sequence[str]) -> dict[str, Any]:
    """`["los", "lr=5e-3"]` as `{"kind": "los", "lr": 5e-3}`; a value that is no JSON is a string, a list must be."""
    document: dict[str, Any] = {"kind": words[0]}
    for word in words[1:]:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"parameters of {words[0]} must be written name=value, got {word!r}")
        if name == "kind":
            raise UserError(f"{words[0]} is the kind already, and {word} gives another; write the kind first, once")
        try:
            document[name] = json.loads(text)
        except ValueError:
            if text.startswith(("[", "{")):
                example = '["a", "b"]' if text.startswith("[") else '{"a": true}'
                raise UserError(f"{name}: must be JSON, as in '{name}={example}', got {text}") from None
            document[name] = text
    return document
