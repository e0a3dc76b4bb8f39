"""Progress of a sweep or a matrix as a table for a terminal, or as one line for a log."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lt_train.core.text import format_duration, format_rate, format_time
from sweeps.store.progress import Progress


def as_table(progress: Progress, *, where: str = "") -> Table:
    """Finished trials, the best so far, rate, remaining time and, if there are any, problems."""
    table = Table(title=Text(_title(progress)), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(progress, where):
        table.add_row(name, Text(text))  # Text: brackets in a path are not markup
    return table


def as_line(progress: Progress) -> str:
    """The same as one line."""
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
        left = "" if progress.seconds_left is None else f", about {format_duration(progress.seconds_left)} left"
        rows.append(("rate", f"{format_rate(progress.runs_per_second)} runs/s{left}"))
    if progress.packs_lost or progress.packs_failed:
        rows.append(
            ("packs", f"{progress.packs_lost} lost with their node, {progress.packs_failed} failed; rescheduled")
        )
    if progress.tracking_behind:
        retry = "retrying" if progress.state == "running" else "a resumed sweep retries"
        why = f", {retry}: {progress.tracking_error}" if progress.tracking_error else ""
        rows.append(("tracking", f"{progress.tracking_behind} trials behind{why}"))
    if progress.note:
        rows.append(("note", progress.note))
    if where:
        rows.append(("where", where))
    if progress.at_ms:
        rows.append(("as of", format_time(progress.at_ms)))
    return rows


def sum_progress(name: str, sweeps: Sequence[Progress | None], *, led: bool) -> Progress:
    """Progress of a matrix: the sum over its sweeps.

    Args:
        name: of the matrix.
        sweeps: progress of each sweep; None if it was not started.
        led: whether a driver is running the matrix.
    """
    begun = [sweep for sweep in sweeps if sweep is not None]
    finished = [sweep for sweep in begun if sweep.state == "finished"]
    failed = [sweep for sweep in begun if sweep.state == "failed"]
    known = [sweep for sweep in begun if sweep.trials]
    current = next((sweep for sweep in begun if not sweep.ended), None)
    note = f"{len(finished)} of {len(sweeps)} sweeps finished"
    note += "".join(f"; {sweep.sweep} failed: {sweep.note}" for sweep in failed)
    if led and current is not None:
        note += f"; running {current.sweep}" + (f": {current.note}" if current.note else "")
    ended = "finished" if len(finished) == len(sweeps) else "failed" if failed else "stopped"
    return Progress(
        sweep=name,
        state="running" if led else ended,
        note=note,
        part=f"{len(known)} of {len(sweeps)} sweeps" if len(known) < len(sweeps) else "",
        trials_finished=sum(sweep.trials_finished for sweep in begun),
        trials_failed=sum(sweep.trials_failed for sweep in begun),
        trials_stopped=sum(sweep.trials_stopped for sweep in begun),
        trials=sum(sweep.trials for sweep in begun),
        runs_finished=sum(sweep.runs_finished for sweep in begun),
        runs=sum(sweep.runs for sweep in begun),
        packs_lost=sum(sweep.packs_lost for sweep in begun),
        packs_failed=sum(sweep.packs_failed for sweep in begun),
        tracking_behind=sum(sweep.tracking_behind for sweep in begun),
        driver=current.driver if current is not None else "",
        started_ms=min((sweep.started_ms for sweep in begun if sweep.started_ms), default=0),
        at_ms=max((sweep.at_ms for sweep in begun), default=0),
    )
