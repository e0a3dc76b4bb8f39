"""The commands that use the trained classifier of a sweep: `export` and `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lt_train.cli.program import AsJson, command, user_path
from lt_train.core.errors import UserError
from sweeps.cli.options import app

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a sweep.")]
TrialName = Annotated[
    str | None,
    typer.Option(
        "--trial",
        metavar="NAME",
        help="Use the head of this trial, such as baseline-ce. Default: the winner, or the leader so far.",
    ),
]


@command(app, "export", "lt-sweep export runs/demo --format onnx")
def export(
    run: Run,
    *,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="state_dict or safetensors: weights for your own module. pt2 or onnx: the network as a graph.",
        ),
    ] = "state_dict",
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=user_path, metavar="DIR", help="Directory to write. Default: RUN/export/FORMAT."),
    ] = None,
    trial: TrialName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> int:
    """Write the winning classifier, backbone included, with a model card.

    The head is that of the best seed of the trial.
    """
    from sweeps.analysis.load import read_sweep
    from sweeps.reporting.export import export_model, trained_head, trial_named

    sweep = read_sweep(run)
    chosen = None if trial is None else trial_named(sweep, trial)
    file = export_model(sweep, out, format=format, trial=chosen, force=force)
    head = trained_head(sweep, chosen)
    if as_json:
        print(
            json.dumps({"file": str(file), "format": format, "trial": head.trial.trial.name, "seed": head.record.seed})
        )
    else:
        print(f"{file}: {head.name}, seed {head.record.seed}; README.md beside it has the code that loads it")
    return 0


@command(app, "predict", "lt-sweep predict runs/birds new-images --out predictions.csv")
def predict(
    run: Run,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", parser=user_path, help="Folder of images; subfolders are included.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=user_path, metavar="FILE", help="CSV file to write. Default: standard output."),
    ] = None,
    trial: TrialName = None,
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="N", help="Only the N most probable classes. Default: one column per class."),
    ] = None,
    unreadable: Annotated[
        Literal["fail", "skip"] | None,
        typer.Option("--unreadable", help="If an image cannot be decoded. Default: as bad_images of the dataset."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> int:
    """Classify the images of a folder and write a CSV of class names and probabilities.

    --json prints the rows as JSON or, with --out, the name of the CSV file and the number of its images.
    """
    from lt_train.core.io import atomic_file
    from sweeps.analysis.load import read_sweep
    from sweeps.reporting.export import predict as predictions
    from sweeps.reporting.export import trial_named

    if out is not None and out.exists() and not (force and out.is_file()):
        raise UserError(f"{out} exists; give another --out" + ("" if out.is_dir() else ", or replace it with --force"))
    sweep = read_sweep(run)
    chosen = None if trial is None else trial_named(sweep, trial)
    frame = predictions(sweep, folder, trial=chosen, unreadable=unreadable, top=top)
    text = (
        frame.to_json(orient="records") if as_json and out is None else frame.to_csv(index=False, float_format="%.6g")
    )
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return 0
    with atomic_file(out) as file:
        file.write_text(text)
    print(json.dumps({"file": str(out), "images": len(frame)}) if as_json else f"{out}: {len(frame)} images")
    return 0
