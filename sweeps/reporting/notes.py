"""Markdown texts: the description of a sweep and of its champion in MLflow, and the output of `lt-sweep table`."""

from __future__ import annotations

from pathlib import Path

from sweeps.analysis.labels import best_text, protocol, seeds_text
from sweeps.analysis.matrix_table import MatrixTable
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec
from sweeps.reporting.formats import as_markdown
from sweeps.reporting.result_tables import matrix_tables, method_table
from sweeps.reporting.terminal import winner_line

__all__ = ["champion_note", "finished_note", "matrix_markdown", "result_markdown", "running_note"]


def result_markdown(result: Result) -> str:
    """The table of methods of a finished sweep, under its name."""
    return as_markdown(method_table(result), heading="# ")


def matrix_markdown(table: MatrixTable) -> str:
    """The tables of a matrix."""
    return "\n".join(as_markdown(one, heading="") for one in matrix_tables(table))


def running_note(spec: SweepSpec, directory: Path) -> str:
    """Description of a sweep that has no result yet."""
    return f"{_about(spec)}\n\nUnfinished. `lt-sweep status {directory}` shows its progress.\n"


def finished_note(spec: SweepSpec, result: Result, directory: Path) -> str:
    """Description of a finished sweep: winner, table of methods, notes, and how to load its champion."""
    found = winner_line(result)
    parts = [
        f"**Winner: {found}**" if found else "**No winner: every trial, or every finalist, failed.**",
        _about(spec),
        as_markdown(method_table(result), heading="").strip(),
        *(f"Note: {note}" for note in result.notes),
        "The Artifacts tab has `table.md`, `trials.csv`, `per_class.csv`, figures, `spec.yaml` and `result.json`. "
        f"`lt-sweep report {directory}` writes a page with all figures and tests.",
    ]
    return "\n\n".join([*parts, *([_loading(spec)] if found else [])]) + "\n"


def champion_note(spec: SweepSpec, result: Result) -> str:
    """Description of a registered champion."""
    return f"{winner_line(result)}. Selected by {protocol(spec)}.\n\n{_loading(spec)}\n"


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


def _loading(spec: SweepSpec) -> str:
    return (
        "```python\n"
        f'model = mlflow.pyfunc.load_model("models:/{spec.name}@champion")\n'
        "model.predict(inputs)  # logits [N, K]; model.metadata.signature describes the inputs\n"
        "```\n\n"
        "`@champion` takes the inputs of the dataset: images (uint8, `[N, H, W, C]`) if it has images. "
        "`@champion-head` takes features `[N, D]`."
    )
