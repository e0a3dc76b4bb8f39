"""`lt-train`: the steps of classifier re-training one by one, from the command line.

Results go to standard output and notes and progress to standard error, so that a program can read `--json` documents
and the path of a bank. Commands import torch when they run, so that `--help` does not.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lt_train.cli.program import KIND, AsJson, Program, Version, command, group, log_notes, run_program, user_path
from lt_train.cli.program import parse as parse_words
from lt_train.core.errors import DataError, LongtailError, UserError
from lt_train.core.io import check_output

_log = logging.getLogger(__name__)

app = group(Program, "Train backbones, extract features and re-train classifiers on long-tailed data, step by step.")
data = typer.Typer(help="Inspect a dataset.", rich_markup_mode=None)
app.add_typer(data, name="data")


@app.callback()
def _options(version: Version = False) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_program(app, "lt-train", argv)


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The parameters that a command line gives to its command, which is not run.

    Raises:
        ValueError: the command line is invalid; the message is what `lt-train` prints.
    """
    return parse_words(app, "lt-train", argv)


def _finite(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"must be at least 0, got {value}")
    return value


Dataset = Annotated[
    list[str], typer.Option("--dataset", metavar=KIND, help="Dataset kind and its parameters.", show_default=False)
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.")]
Bank = Annotated[
    Path, typer.Option("--bank", parser=user_path, metavar="DIR", help="Feature bank written by lt-train features.")
]


@command(
    data,
    "check",
    "lt-train data check --dataset image_folder root=~/birds size=224 --plot birds.png",
)
def data_check(
    *,
    dataset: Dataset,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", parser=user_path, metavar="FILE", help="Write a PNG with the class sizes."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print class counts and splits, and check every image.

    Exits with 2 if the check finds problems.
    """
    from rich.console import Console
    from rich.text import Text

    from lt_train.cli.output import component
    from lt_train.core.text import progress
    from lt_train.datasets import check as checking
    from lt_train.datasets.base import DATASETS

    if plot:
        check_output(plot)
    spec = DATASETS.parse(component(dataset))
    with progress("checking every image", unit="image") as report:
        found = spec.inspect(report)
    log_notes(found.notes)
    document = checking.document(found)
    if plot and found.counts is not None:
        checking.plot(found.counts.tolist(), plot)
    if as_json:
        print(json.dumps(document, allow_nan=False))
    else:
        console = Console(soft_wrap=not sys.stdout.isatty())
        for line in checking.lines(document, console.width, plain=not sys.stdout.isatty()):
            console.print(Text(line))
    if found.findings:
        raise DataError(f"dataset {spec.kind} is invalid: {len(found.findings)} findings")


_DEFAULT_BACKBONE = ["small_cnn"]
_DEFAULT_RECIPE = ["ce"]


@command(
    app,
    "backbone",
    "lt-train backbone --dataset digits_lt imbalance_ratio=20 --backbone small_cnn --out digits.safetensors",
)
def backbone(
    *,
    dataset: Dataset,
    backbone: Annotated[
        list[str], typer.Option("--backbone", metavar=KIND, help="Backbone kind and its parameters.")
    ] = _DEFAULT_BACKBONE,
    recipe: Annotated[
        list[str], typer.Option("--recipe", metavar=KIND, help="Stage-1 recipe and its parameters.")
    ] = _DEFAULT_RECIPE,
    out: Annotated[Path, typer.Option("--out", parser=user_path, metavar="FILE", help="Checkpoint to write.")],
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of initialisation, order and augmentation.")
    ] = 0,
    save_every: Annotated[
        float,
        typer.Option(
            "--save-every",
            metavar="MINUTES",
            callback=_finite,
            help="Minutes between saves of the training state. It is also saved after each epoch and on Ctrl-C.",
        ),
    ] = 10.0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a backbone (stage 1) and print its accuracy.

    Resumes an interrupted training. Accuracies are those of the test set, per class split.
    """
    from lt_train.backbones.base import BACKBONES
    from lt_train.backbones.checkpoint import load_checkpoint
    from lt_train.cli.output import component, percents, print_table
    from lt_train.core.device import check_device
    from lt_train.core.text import progress
    from lt_train.datasets.base import DATASETS, ImageData
    from lt_train.metrics import SPLITS
    from lt_train.pretrain.recipes import RECIPES
    from lt_train.pretrain.train import train_backbone

    check_device(device)
    check_output(out)
    data_spec = DATASETS.parse(component(dataset))
    backbone_spec, recipe_spec = BACKBONES.parse(component(backbone)), RECIPES.parse(component(recipe))
    data = data_spec.load()
    if not isinstance(data, ImageData):
        raise UserError(f"dataset {data_spec.kind} contains features; a backbone is trained on images only")
    log_notes(data.notes)
    with progress(f"training {backbone_spec.kind}") as report:
        train_backbone(
            data,
            backbone_spec,
            recipe_spec,
            out,
            seed=seed,
            device=device,
            about={"dataset": data_spec.model_dump(mode="json")},
            report=report,
            save_every=save_every,
        )
    trained = load_checkpoint(out)[1]
    accuracy = trained["accuracy"]
    document = {"checkpoint": str(out), "accuracy": accuracy, "curve": trained["curve"], "notes": list(data.notes)}
    print_table(document, ["checkpoint", *SPLITS], [[str(out), *percents(accuracy)]], as_json=as_json)


@command(app, "features", "lt-train features --dataset digits_lt --checkpoint digits.safetensors --views 20")
def features(
    *,
    dataset: Dataset,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            parser=user_path,
            metavar="FILE",
            help="Checkpoint written by lt-train backbone. Not needed for a dataset that contains features.",
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            metavar=KIND,
            help="Backbone kind with a checkpoint of its own, such as imported. Replaces --checkpoint.",
        ),
    ] = None,
    views: Annotated[
        int, typer.Option("--views", metavar="N", min=1, help="Augmented training views; 1: without augmentation.")
    ] = 1,
    no_test_flip: Annotated[
        bool, typer.Option("--no-test-flip", help="Do not average test features over each image and its mirror image.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option("--dtype", help="Type of stored features.")
    ] = "float32",
    unreadable: Annotated[
        Literal["fail", "skip"],
        typer.Option(
            "--unreadable",
            help="What to do when an image cannot be decoded: fail stops at the first one, skip drops it and records a "
            "note.",
        ),
    ] = "fail",
    store: Annotated[
        Path, typer.Option("--store", parser=user_path, metavar="DIR", help="Directory of feature banks.")
    ] = Path("banks"),
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Extract a feature bank and print its path.

    Reuses an existing bank and resumes an interrupted extraction.
    """
    if checkpoint is not None and backbone:
        raise typer.BadParameter("--checkpoint and --backbone cannot be used together")
    from lt_train.backbones.base import BACKBONES
    from lt_train.cli.output import component
    from lt_train.core.device import check_device
    from lt_train.core.text import progress
    from lt_train.datasets.base import DATASETS
    from lt_train.features.extract import build_bank
    from lt_train.features.files import open_bank
    from lt_train.features.shards import Throughput
    from lt_train.features.spec import FeaturesSpec

    check_device(device)
    data_spec = DATASETS.parse(component(dataset))
    features = FeaturesSpec(views=views, test_flip=False if no_test_flip else None, dtype=dtype, unreadable=unreadable)
    source = checkpoint if backbone is None else BACKBONES.parse(component(backbone))
    data = data_spec.load()
    log_notes(data.notes)
    pace = Throughput()
    with progress("extracting features", unit="image") as report:
        path = build_bank(data_spec, source, features, store, device=device, report=report, data=data, throughput=pace)
    bank = open_bank(path)
    log_notes(note for note in bank.notes if note not in data.notes)
    if not as_json:  # only the path, so that a shell can use it
        print(path)
        return
    document = {
        "bank": str(path),
        "train": list(bank.train_features.shape),
        "val": None if bank.val is None else list(bank.val.features.shape),
        "test": list(bank.test.features.shape),
        "classes": bank.num_classes,
        "dtype": str(bank.train_features.dtype).removeprefix("torch."),
        "notes": list(bank.notes),
        "pace": pace.document() if pace.images else None,  # None if the bank existed
    }
    print(json.dumps(document, allow_nan=False))


@command(
    app,
    "retrain",
    "lt-train retrain --bank banks/FINGERPRINT --method los smooth_factor=0.9 lr=5e-3 --out head.safetensors",
)
def retrain(
    *,
    bank: Bank,
    method: Annotated[
        list[str],
        typer.Option("--method", metavar=KIND, help="Method kind and its hyperparameters.", show_default=False),
    ],
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Passes over the training set.")] = 20,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images per step.")] = 64,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Number of seeds, counted from 0.")] = 5,
    engine: Annotated[
        Literal["fused", "reference"],
        typer.Option(
            "--engine", help="fused trains all seeds at once; reference is the plain loop it is tested against."
        ),
    ] = "fused",
    select: Annotated[
        Literal["val", "test"], typer.Option("--select", help="Part of the data that selects the best seed and epoch.")
    ] = "val",
    epoch: Annotated[Literal["last", "best"], typer.Option("--epoch", help="Epoch whose head is kept.")] = "last",
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=user_path, metavar="FILE", help="Write the head of the best seed to this file."),
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Re-train the classifier on a feature bank.

    Trains one method with several seeds and prints the test accuracy of each seed and their mean.
    """
    import torch

    from lt_train.cli.output import component, means_by_split, percent, percents, print_table, run_row
    from lt_train.core.device import check_device
    from lt_train.features.files import open_bank
    from lt_train.methods.base import METHODS, TrainingSpec
    from lt_train.methods.heads.base import save_head
    from lt_train.metrics import SPLITS
    from lt_train.retrain import fused, reference
    from lt_train.retrain.base import EpochSelection, Run

    check_device(device)
    if out:
        check_output(out)
    method_spec = METHODS.parse(component(method))
    training = TrainingSpec(epochs=epochs, batch_size=batch_size)
    opened = open_bank(bank)
    log_notes(opened.notes)
    if select == "val" and opened.val is None:
        raise UserError("--select val needs a validation set, and this bank has none; use --select test")
    runs = [Run(method_spec, training, seed) for seed in range(seeds)]
    fit = {"fused": fused, "reference": reference}[engine].fit
    results = fit(opened, runs, device, EpochSelection(epoch=epoch, on=select))
    rows = [run_row(run, result, select) for run, result in zip(runs, results, strict=True)]
    finished = [(row, result.kept) for row, result in zip(rows, results, strict=True) if result.kept is not None]
    failures = [f"seed {row['seed']}: {row['failure']}" for row in rows if row["failure"] is not None]
    failed = f"{len(failures)} of {len(runs)} seeds failed ({'; '.join(failures)})"
    if not finished:
        raise LongtailError(failed)
    if failures:
        _log.warning("%s; the mean over fewer seeds is not shown", failed)
    best, kept = max(finished, key=lambda pair: pair[0]["selected_on"])
    if out:
        about = {"bank": opened.fingerprint, "method": method_spec.model_dump(mode="json"), "seed": best["seed"]}
        save_head(out, {name: torch.from_numpy(array) for name, array in kept.state.items()}, about)
    mean = dict.fromkeys(SPLITS) if failures else means_by_split(rows)
    document = {
        "runs": rows,
        "mean": mean,
        "failed": len(failures),
        "on": select,
        "best_seed": best["seed"],
        "head": str(out) if out else None,
    }
    lines = [
        [
            str(row["seed"]),
            str(row["epoch"] or "-"),
            percent(row["selected_on"]),
            *percents(row["test"]),
            row["failure"] or "",
        ]
        for row in rows
    ]
    lines.append(["mean", "", "", *percents(mean), ""])
    columns = ["seed", "epoch", select, *(f"test {split}" for split in SPLITS), "failure"]
    print_table(document, columns, lines, as_json=as_json)


@command(app, "evaluate", "lt-train evaluate --bank banks/FINGERPRINT --head head.safetensors")
def evaluate(
    *,
    bank: Bank,
    head: Annotated[
        Path | None,
        typer.Option(
            "--head",
            parser=user_path,
            metavar="FILE",
            help="Head written by lt-train retrain --out. Default: the stage-1 head of the bank.",
        ),
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure a head on the test set of a bank.

    Prints accuracy, LoMa and regularised std per class split.
    """
    from lt_train.cli.output import load_classifier, measures, percents, print_table
    from lt_train.core.device import check_device
    from lt_train.features.files import open_bank
    from lt_train.metrics import SPLITS
    from lt_train.retrain import reference

    check_device(device)
    opened = open_bank(bank)
    log_notes(opened.notes)
    opened.check()
    kept = reference.measure(opened, load_classifier(opened, head).to(device))
    measured = measures(opened, kept)
    lines = [
        ["accuracy", *percents(measured["accuracy"])],
        *(
            [name, *("-" if x is None else f"{x:.4f}" for x in measured[name].values())]
            for name in ("loma", "regularised_std")
        ),
    ]
    print_table(measured, ["test", *SPLITS], lines, as_json=as_json)
