"""A sweep's progress as a table for a terminal, or as one line for a log. Knows progress and rich; asks nobody."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from sweeps.store.moments import shown_duration, shown_moment
from sweeps.store.status import Progress

__all__ = ["as_line", "as_table"]


def as_table(progress: Progress, *, where: str = "") -> Table:
    """Trials finished, best so far, rate, time left; and what went wrong, if anything did."""
    table = Table(title=Text(_title(progress)), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(progress, where):
        table.add_row(name, Text(text))  # as it is: a path in brackets is no markup of rich's
    return table


def as_line(progress: Progress) -> str:
    """The same for a log."""
    return f"{_title(progress)}; " + "; ".join(f"{name} {text}" for name, text in _rows(progress, "") if text)


def _title(progress: Progress) -> str:
    return f"sweep {progress.sweep}: {progress.state}"


def _rows(progress: Progress, where: str) -> list[tuple[str, str]]:
    rows = []
    if progress.trials:
        extra = [
            f"{count} {what}"
            for count, what in ((progress.trials_failed, "failed"), (progress.trials_stopped, "stopped early"))
            if count
        ]
        part = f" in {progress.part}" if progress.part else ""
        of = f"{progress.trials_finished} of {progress.trials} finished{part}"
        rows.append(("trials", ", ".join([of, *extra])))
        rows.append(("runs", f"{progress.runs_finished} of {progress.runs}{part}"))
    if progress.winner:
        rows.append(("winner", progress.winner))
    elif progress.best is not None:
        best = progress.best
        rows.append(("best", f"{best.protocol} {100 * best.objective:.2f} % at {best.trial}"))
    if progress.state == "running" and progress.runs_per_second and progress.runs_finished < progress.runs:
        left = "" if progress.seconds_left is None else f", about {shown_duration(progress.seconds_left)} left"
        rows.append(("rate", f"{progress.runs_per_second:.3g} runs/s{left}"))
    if progress.packs_lost or progress.packs_failed:
        lost = f"{progress.packs_lost} lost with their machines, {progress.packs_failed} failed; tried again"
        rows.append(("packs", lost))
    if progress.tracking_behind:
        again = "tried again" if progress.state == "running" else "a resume tries again"
        why = f", {again}: {progress.tracking_trouble}" if progress.tracking_trouble else ""
        rows.append(("tracking", f"{progress.tracking_behind} trials behind{why}"))
    if progress.note:
        rows.append(("note", progress.note))
    if where:
        rows.append(("where", where))
    if progress.at_ms:
        rows.append(("as of", shown_moment(progress.at_ms)))
    return rows
