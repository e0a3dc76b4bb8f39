"""Files of a finished sweep, and the Markdown descriptions that trackers show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lt_train.core.imports import is_installed
from lt_train.core.io import writing
from lt_train.features.bank import FeatureBank
from sweeps.analysis.labels import best_text, protocol, seeds_text
from sweeps.analysis.load import Sweep, class_order
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec
from sweeps.reporting.class_figures import MOST_LINES
from sweeps.reporting.model import Cell, Column, Figure, Panel, Series, Table, as_csv, as_markdown
from sweeps.reporting.result_tables import method_table
from sweeps.reporting.svg import draw_png
from sweeps.reporting.tables import all_runs
from sweeps.reporting.terminal import winner_line
from sweeps.store.layout import SweepDirectory, check_place
from sweeps.store.records import RunArrays


def running_note(spec: SweepSpec, directory: Path) -> str:
    """Description of a sweep that has no result yet."""
    return f"{_about(spec)}\n\nUnfinished. `lt-sweep status {directory}` shows its progress.\n"


def finished_note(spec: SweepSpec, result: Result, directory: Path) -> str:
    """Description of a finished sweep: winner, table of methods and notes."""
    found = winner_line(result)
    parts = [
        f"**Winner: {found}**" if found else "**No winner: every trial, or every finalist, failed.**",
        _about(spec),
        as_markdown(method_table(result), heading="").strip(),
        *(f"Note: {note}" for note in result.notes),
        "Its artifacts are `table.md`, `trials.csv`, `per_class.csv`, figures, `spec.yaml` and `result.json`. "
        f"`lt-sweep report {directory}` writes a page with all figures and tests.",
    ]
    return "\n\n".join(parts) + "\n"


def champion_note(spec: SweepSpec, result: Result) -> str:
    """Description of a registered champion."""
    return f"{winner_line(result)}. Selected by {protocol(spec)}.\n"


def _about(spec: SweepSpec) -> str:
    methods = ", ".join(candidate.name for candidate in spec.candidates())
    chosen = spec.selection
    backbone = f", backbone {spec.backbone.kind}" if spec.backbone else ""
    lines = [
        f"Sweep **{spec.name}**: classifier re-training on frozen features of {spec.dataset.kind}{backbone}. Methods: "
        f"{methods}; {spec.search.trials} trials per searched method, {seeds_text(chosen.seeds)} per trial.",
        f"Ranked by {protocol(spec)}.",
    ]
    if chosen.on == "test":
        lines.append("Selected on the test set, as in the paper: the winner's accuracies are optimistic.")
    if chosen.finalists:
        best = best_text(chosen.finalists).capitalize()
        lines.append(f"{best} ran again on new seeds, and results are from those runs.")
    return " ".join(lines)


def write_artifacts(directory: SweepDirectory, sweep: Sweep, bank: FeatureBank, result: Result) -> None:
    """Write `artifacts/`: spec.yaml, result.json, table.md, trials.csv, per_class.csv, loma.png, class_accuracy.png.

    The figures need matplotlib (extra `report`) and are left out without it.

    Raises:
        StorageError: the disk is full, or the place is taken by a file.
    """
    place, spec = directory.artifacts, sweep.spec
    check_place(place, directory=True)
    counts = bank.class_counts.tolist()
    shown = _best_runs(sweep)
    with writing(place):
        place.mkdir(exist_ok=True)
        (place / "spec.yaml").write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
        (place / "result.json").write_text(directory.result.read_text())
        (place / "table.md").write_text(as_markdown(method_table(result), heading="# "))
        (place / "trials.csv").write_text(as_csv(all_runs(sweep.every)))
        (place / "per_class.csv").write_text(as_csv(_per_class(shown, counts)))
        if shown and is_installed("matplotlib"):
            drawn = dict(list(shown.items())[:MOST_LINES])
            loma = {name: _known(arrays.loma) for name, arrays in drawn.items()}
            title = f"{spec.name}: Logits Magnitude (Eq. 6) on test, best seeds"
            draw_png(_by_class("loma", title, "LoMa", loma, counts), place / "loma.png")
            accuracy = {name: _known(arrays.class_accuracy) for name, arrays in drawn.items()}
            title = f"{spec.name}: test accuracy by class, best seeds"
            draw_png(_by_class("class_accuracy", title, "accuracy", accuracy, counts), place / "class_accuracy.png")


def _best_runs(sweep: Sweep) -> dict[str, RunArrays]:
    """The arrays of the best seed of each baseline and of each method's best trial, by display name and seed."""
    runs = {name: sweep.best_seed(one) for name, one in sweep.finished_baselines.items()}
    for rank, one in enumerate(sweep.methods):
        name, run = one.trial.candidate, sweep.best_seed(one)
        if rank == 0:
            runs[f"{name} (winner)"] = run
        elif name not in runs or runs[name].key != run.key:  # otherwise the baseline is the same run
            runs[f"{name} (best)" if name in runs else name] = run
    return {f"{name}, seed {run.seed}": sweep.ledger.arrays(run.key) for name, run in runs.items()}


def _known(values: Any) -> list[float | None]:
    """The values of an array; None for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _per_class(shown: dict[str, RunArrays], counts: list[int]) -> Table:
    """Accuracy, LoMa and regularised std by class, of the best seed of each method."""
    titles = ["class", "training_images"]
    for name in shown:
        titles += [f"{name} accuracy", f"{name} LoMa", f"{name} regularised_std"]
    columns: list[Sequence[Cell]] = [range(len(counts)), counts]
    for arrays in shown.values():
        columns += [_known(values) for values in (arrays.class_accuracy, arrays.loma, arrays.regularised_std)]
    rows = tuple(zip(*columns, strict=True))
    return Table("per_class", "Results by class", tuple(map(Column, titles)), rows)


def _by_class(name: str, title: str, unit: str, values: dict[str, list[float | None]], counts: list[int]) -> Figure:
    """A line per method over classes by descending size, and the class sizes."""
    order = class_order(counts)
    x = [float(rank) for rank in range(len(order))]
    ticks = {float(rank): str(k) for rank, k in enumerate(order)}
    series = [
        Series(method, x, [own[k] for k in order], style=style) for style, (method, own) in enumerate(values.items())
    ]
    sizes = Series("training images", x, [float(counts[k]) for k in order], style=5)
    panels = (
        Panel("class, by descending size", unit, tuple(series), x_ticks=ticks),
        Panel("class, by descending size", "training images", (sizes,), x_ticks=ticks, y_log=True),
    )
    return Figure(name, title, "", title, panels)
