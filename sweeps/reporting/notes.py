"""What MLflow's pages say of a sweep and of its champion, in Markdown: while it runs, when it is finished, to load it.

Knows specs and results; computes nothing.
"""

from __future__ import annotations

from pathlib import Path

from sweeps.analysis.labels import protocol
from sweeps.analysis.result import Result
from sweeps.analysis.selection import best_told, seeds_told
from sweeps.config.spec import SweepSpec
from sweeps.reporting.markdown import method_table
from sweeps.reporting.terminal import winner_line

__all__ = ["champion_note", "finished_note", "running_note"]


def running_note(spec: SweepSpec, directory: Path) -> str:
    """What a sweep is, before there is a result."""
    return f"{_about(spec)}\n\nNot finished: `lt-sweep status {directory}` says how far it is.\n"


def finished_note(spec: SweepSpec, result: Result, directory: Path) -> str:
    """What a sweep is and found, where the rest is, and how its champion is loaded."""
    found = winner_line(result)
    table = method_table(result).partition("\n\n")[2]  # the note has a title of its own
    parts = [
        f"**Winner: {found}**" if found else "**No winner: every trial, or every finalist, failed.**",
        _about(spec),
        table.strip(),
        *(f"Note: {note}" for note in result.notes),
        "Tab Artifacts: `table.md`, `trials.csv`, `per_class.csv`, figures, `spec.yaml`, `result.json`. One page with "
        f"every figure and test: `lt-sweep report {directory}`.",
    ]
    return "\n\n".join([*parts, *([_loading(spec)] if found else [])]) + "\n"


def champion_note(spec: SweepSpec, result: Result) -> str:
    """What a registered champion is and how it is loaded."""
    return f"{winner_line(result)}. Selected by {protocol(spec)}.\n\n{_loading(spec)}\n"


def _about(spec: SweepSpec) -> str:
    methods = ", ".join(candidate.name for candidate in spec.candidates())
    chosen = spec.selection
    lines = [
        f"Sweep **{spec.name}**: the classifier re-trained on frozen features of {spec.dataset.kind}"
        + (f", backbone {spec.backbone.kind}" if spec.backbone else "")
        + f". Methods: {methods}; {spec.search.trials} trials of each that is searched, {seeds_told(chosen.seeds)} a "
        "trial.",
        f"Ranked by {protocol(spec)}.",
    ]
    if chosen.on == "test":
        lines.append("Selected on the test set, as the paper does: the winner's numbers flatter it.")
    if chosen.finalists:
        best = best_told(chosen.finalists).capitalize()
        lines.append(f"{best} ran again on fresh seeds, and the numbers are from those runs.")
    return " ".join(lines)


def _loading(spec: SweepSpec) -> str:
    return (
        "```python\n"
        f'model = mlflow.pyfunc.load_model("models:/{spec.name}@champion")\n'
        "model.predict(inputs)  # logits [N, K]; model.metadata.signature says what inputs are\n"
        "```\n\n"
        "`@champion` takes what the dataset holds, so images (uint8, `[N, H, W, C]`) where it holds images; "
        "`@champion-head` takes features `[N, D]`."
    )
