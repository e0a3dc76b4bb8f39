"""Terminal output with rich: results of a sweep or matrix, comparisons and plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from lt_train.core.text import format_bytes, format_duration
from lt_train.metrics import ACCURACIES, Score
from sweeps.analysis.labels import seeds_text, short_params, trend_text
from sweeps.analysis.matrix_table import MatrixTable
from sweeps.analysis.result import Plan, Result, Winner
from sweeps.analysis.statistics import Comparison
from sweeps.config.spec import SweepSpec
from sweeps.reporting.model import Column, Section, Table, format_cell
from sweeps.reporting.result_tables import matrix_notes, matrix_tables, ranking_table, selection_text, winner_table

SCREEN = 24
"""Lines of the smallest common terminal."""


def comparison(result: Result, most: int | None = None) -> Group:
    """The result of a sweep: a table of its methods or, for a single method, of the winner and the baselines.

    Args:
        result: of a finished sweep.
        most: most rows (for a single method: most baselines) to show; the number of hidden ones is shown.
    """
    if len(result.methods) > 1:
        seeds = result.protocol.seeds
        shown = f"mean ±95% over {seeds_text(seeds)}" if seeds > 1 else seeds_text(seeds)
        title = f"{result.sweep}: test accuracy in %, {shown}, best first"
        rows = len(result.methods) + len(result.other_baselines())
        table = _rich_table(ranking_table(result, most), padding=1)
        return Group(Text(title), table, *_hidden(rows, most), *_notes(result, most))
    hidden = _hidden(len(result.baselines), most) or [Text()]
    return Group(_rich_table(winner_table(result, most), padding=1), *hidden, *_notes(result, most))


def summary(result: Result, console: Console, below: int) -> Group:
    """`comparison` with as many rows as fit on a screen above `below` other lines, at least one."""
    most = max(len(result.methods) + len(result.other_baselines()), len(result.baselines))
    shown = comparison(result)
    while most > 1 and len(console.render_lines(shown)) + below > SCREEN:
        most -= 1
        shown = comparison(result, most)
    return shown


def matrix_overview(table: MatrixTable) -> Group:
    """Accuracy over all classes and over few classes, by sweep and method; `*` marks the highest of a row."""
    title = f"{table.matrix}: test accuracy in %, mean ±95% over seeds; * the highest of its row"
    parts = [_rich_table(one, padding=1) for one in matrix_tables(table)]
    return Group(Text(title), *parts, *map(Text, matrix_notes(table)))


def winner_line(result: Result) -> str:
    """The winner with its test accuracy and gains in one line; empty if there is none."""
    winner = result.winner
    if winner is None:
        return ""
    # The accuracy over all classes, unless a further metric was selected on.
    score = next((one for one in result.metrics if one.name == result.protocol.metric), ACCURACIES[0])
    gains = [f"{_points(gain[score.name])} over {name}" for name, gain in winner.gain.items() if score.name in gain]
    value = format_cell(winner.mean.of_score(score.name), "percent")
    metric = "" if score == ACCURACIES[0] else f" {score.name}"
    return f"{_label(result, winner)}: test{metric} {value} %" + (f", {', '.join(gains)}" if gains else "")


def sections_shown(sections: Sequence[Section]) -> Group:
    """Sections of a report without their figures."""
    parts: list[RenderableType] = []
    for section in sections:
        parts.append(Text(section.title, style="bold"))
        parts += [Text(text) for text in section.text]
        for one in section.tables:
            parts += [Text(), _rich_table(one), Text(one.note, style="dim")]
        parts.append(Text())
    return Group(*parts[:-1])


class _FittingTable:
    """A table that leaves out optional columns, the last first, where the terminal is too narrow for all of them."""

    def __init__(self, table: Table, padding: int) -> None:
        self.table, self.padding = table, padding

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        columns, unlimited = list(self.table.columns), options.update(max_width=10_000)
        shown = self._of(columns)
        while console.measure(shown, options=unlimited).maximum > options.max_width and any(
            column.optional for column in columns
        ):
            columns.remove([column for column in columns if column.optional][-1])
            shown = self._of(columns)
        yield shown
        if hidden := [column.title for column in self.table.columns if column not in columns]:
            yield Text(f"  the terminal is too narrow for {', '.join(hidden)}")

    def _of(self, columns: Sequence[Column]) -> RichTable:
        """Numbers are never wrapped or cut; text columns fold instead."""
        one = self.table
        title = Text(one.title) if one.title else None
        table = RichTable(title=title, title_justify="left", title_style="", box=None, padding=(0, self.padding, 0, 0))
        for column in columns:
            number = column.kind != "text"
            table.add_column(column.title, justify="right" if number else "left", overflow="fold", no_wrap=number)
        for index, row in enumerate(one.rows):
            cells = []
            for place, (cell, column) in enumerate(zip(row, one.columns, strict=True)):
                mark = "*" * ((index, place) in one.strong_cells)
                if column in columns:
                    text = format_cell(cell, column.kind) + mark
                    cells.append(Text(text, style="bold" * one.is_strong(index, place)))
            table.add_row(*cells)
        return table


def _rich_table(one: Table, padding: int = 2) -> RenderableType:
    return _FittingTable(one, padding)


def _hidden(rows: int, most: int | None) -> list[Text]:
    more = 0 if most is None else rows - most
    return [Text(f"  and {more} more; `lt-sweep table` shows all")] if more > 0 else []


def _label(result: Result, winner: Winner) -> str:
    method = f"{winner.method}, " if len(result.methods) > 1 else ""
    return f"{method}trial {winner.trial}, {short_params(winner.searched) or 'nothing searched'}"


def _points(gain: Comparison) -> str:
    return format_cell(gain.difference, "points")


def _notes(result: Result, most: int | None) -> list[Text]:
    protocol, winner = result.protocol, result.winner
    lines = ["no winner" if winner is None else f"winner: {_label(result, winner)}", selection_text(protocol)]
    if protocol.on == "test":
        lines.append("selected on the test set, as in the paper: the winner's accuracies are optimistic")
    if winner is None:
        some = any(trial.objective is not None and trial.stopped is None for trial in result.trials)
        complete = " that was not stopped" if result.runs.stopped else ""
        lines.append(f"every {'finalist' if some else f'trial{complete}'} failed: see result.json for the reasons")
    elif len(result.methods) <= 1:
        for name, gain in list(winner.gain.items())[:most]:
            lines.append(f"gain over {name}, points: {_gains(gain, result.metrics)}")
    lines += _extended(result)
    if protocol.seeds > 1:
        ties = any(row.tied for row in result.methods[1:most])
        what = "intervals and ties (=) are over seeds of" if ties else "intervals are over seeds of the"
        lines.append(f"{what} re-training: one backbone, one test set")
    stopped = sum(trial.stopped is not None for trial in result.trials)
    if stopped:
        lines.append(f"{stopped} of {len(result.trials)} trials ({result.runs.stopped} runs) were stopped early")
    lines.append(
        f"{result.runs.finished} runs finished, {result.runs.failed} failed, {result.runs.shared} shared; "
        f"completed in {result.seconds['total']:.0f} s, {result.seconds['train']:.0f} s of training in all"
    )
    return [Text(line) for line in lines]


def _gains(gain: Mapping[str, Comparison], metrics: Sequence[Score]) -> str:
    shown = [ACCURACIES[0], ACCURACIES[-1], *(score for score in metrics if score.percent)]
    return ", ".join(f"{score.title} {_points(gain[score.name])}" for score in shown if score.name in gain)


def _extended(result: Result) -> list[str]:
    """The outcome of extended training."""
    extended = result.extended
    if extended is None:
        return [f"no extended training: {result.extended_skipped}"] if result.extended_skipped else []
    outcome = trend_text(extended.trend, len(extended.seeds))
    lines = [f"trained {extended.times}x as long: {_points(extended.change)} on {result.protocol.on}, {outcome}"]
    if extended.over_start is not None and extended.over_start.verdict == "worse":
        lines.append(f"  after that it is below the stage-1 head: {_points(extended.over_start)}")
    return lines


def plan_table(spec: SweepSpec, planned: Plan) -> RichTable:
    """The plan of one sweep in full."""
    rows = []
    batches = f"{planned.proposal_batches} proposal batch{'es' * (planned.proposal_batches != 1)}"
    each = " for each method" * (len(planned.methods) > 1)
    if len(planned.methods) > 1:
        rows.append(("methods", ", ".join(f"{name} ({trials})" for name, trials in planned.methods.items())))
    rows += [
        ("trials", f"{planned.trials} in {batches} of {spec.search.proposal_batch}{each}"),
        (
            "runs",
            f"{planned.runs}: search {planned.search_runs} ({seeds_text(planned.seeds)}), "
            f"baselines {planned.baseline_runs}, finalists {planned.finalist_runs}",
        ),
    ]
    if planned.extended_runs:
        rows.append(("", f"and {planned.extended_runs} of the winner, trained {planned.extended_factor}x as long"))
    if planned.epochs_saved:
        saved = f"{spec.search.early_stopping.kind} saves {planned.epochs_saved:.0%} of the search's epochs"
        rows.append(("early stopping", saved))
    rows += [
        (
            "packs",
            f"{planned.packs}, of which {2 * planned.packs_per_batch} can train at once (two proposal batches); "
            f"{planned.pack_sizes}",
        ),
        ("data", f"{planned.train_images} train, {planned.val_images} val, {planned.test_images} test images"),
        ("head", f"{planned.classes} classes x {planned.feature_dim} features"),
        ("bank", f"{format_bytes(planned.bank_bytes)}, {planned.views} training view{'s' * (planned.views > 1)}"),
        ("memory per pack", f"up to {format_bytes(planned.pack_bytes)}, in addition to the bank"),
        *_times(spec, planned),
        ("result", f"{Path(spec.storage).expanduser() / spec.name / 'result.json'}"),
    ]
    table = RichTable(title=f"plan of {spec.name}", title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _times(spec: SweepSpec, planned: Plan) -> list[tuple[str, str]]:
    cpus = "" if planned.device.startswith("GPU") else f" ({spec.resources.cpus_per_pack} CPU per pack)"
    rows = []
    if planned.stage1_seconds is not None:
        rows.append(("stage 1", f"about {format_duration(planned.stage1_seconds)}, unless already trained"))
    if planned.feature_seconds is not None:
        rows.append(("features", f"about {format_duration(planned.feature_seconds)}, unless already extracted"))
    return [*rows, ("re-training", f"about {format_duration(planned.train_seconds)} on one {planned.device}{cpus}")]


def plans_table(plans: Sequence[tuple[SweepSpec, Plan]]) -> Group:
    """One line per sweep with the time of its phases, and a total in which shared work counts once."""
    table = RichTable(box=None, padding=(0, 1, 0, 0))
    table.add_column("sweep", no_wrap=True)
    for name in ("runs", "stage 1", "features", "heads", "all", "bank"):
        table.add_column(name, justify="right", no_wrap=True)
    for spec, planned in plans:
        phases = (planned.stage1_seconds, planned.feature_seconds, planned.train_seconds, planned.seconds)
        table.add_row(spec.name, str(planned.runs), *map(_short, phases), format_bytes(planned.bank_bytes))
    total = _sum(plans)
    phases = (total["stage1_seconds"], total["feature_seconds"], total["train_seconds"], total["seconds"])
    table.add_row("sum", str(total["runs"]), *map(_short, phases), format_bytes(total["bank_bytes"]))
    devices = " or ".join(dict.fromkeys(planned.device for _, planned in plans))
    return Group(Text(f"time on one {devices}, estimated from the number of operations"), table)


def plans_document(plans: Sequence[tuple[SweepSpec, Plan]]) -> dict[str, Any]:
    """Several plans and their sum as a JSON document."""
    return {"sweeps": {spec.name: planned.document() for spec, planned in plans}, "sum": _sum(plans)}


def _sum(plans: Sequence[tuple[SweepSpec, Plan]]) -> dict[str, float]:
    backbones = {planned.backbone: planned for _, planned in plans}.values()
    banks = {planned.bank: planned for _, planned in plans}.values()
    seconds = {
        "stage1_seconds": sum(planned.stage1_seconds or 0.0 for planned in backbones),
        "feature_seconds": sum(planned.feature_seconds or 0.0 for planned in banks),
        "train_seconds": sum(planned.train_seconds for _, planned in plans),
    }
    return {
        "runs": sum(planned.runs for _, planned in plans),
        **seconds,
        "seconds": sum(seconds.values()),
        "bank_bytes": sum(planned.bank_bytes for planned in banks),
    }


def _short(seconds: float | None) -> str:
    """`40 s`, `25 min`, `8.2 h`."""
    if seconds is None:
        return "-"
    amount, unit = (
        (seconds / 3600, "h") if seconds >= 5400 else (seconds / 60, "min") if seconds >= 90 else (seconds, "s")
    )
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"
