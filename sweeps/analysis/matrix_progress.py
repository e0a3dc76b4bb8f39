"""How far a matrix is: the progress of its sweeps, summed as if they were one. Asks nobody; knows no Ray."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.store.status import Progress

__all__ = ["as_one"]


def as_one(name: str, members: Sequence[Progress | None], *, led: bool) -> Progress:
    """The sum of what the sweeps of a matrix say of themselves.

    Args:
        name: the matrix's.
        members: None for a sweep that was not begun.
        led: whether a driver is at work on the matrix.
    """
    begun = [member for member in members if member is not None]
    finished = [member for member in begun if member.state == "finished"]
    failed = [member for member in begun if member.state == "failed"]
    known = [member for member in begun if member.trials]
    at = next((member for member in begun if not member.ended), None)
    note = f"{len(finished)} of {len(members)} sweeps finished"
    note += "".join(f"; {member.sweep} failed: {member.note}" for member in failed)
    if led and at is not None:
        note += f"; at {at.sweep}" + (f": {at.note}" if at.note else "")
    ended = "finished" if len(finished) == len(members) else "failed" if failed else "stopped"
    return Progress(
        sweep=name,
        state="running" if led else ended,
        note=note,
        part=f"{len(known)} of {len(members)} sweeps" if len(known) < len(members) else "",
        trials_finished=sum(member.trials_finished for member in begun),
        trials_failed=sum(member.trials_failed for member in begun),
        trials_stopped=sum(member.trials_stopped for member in begun),
        trials=sum(member.trials for member in begun),
        runs_finished=sum(member.runs_finished for member in begun),
        runs=sum(member.runs for member in begun),
        packs_lost=sum(member.packs_lost for member in begun),
        packs_failed=sum(member.packs_failed for member in begun),
        tracking_behind=sum(member.tracking_behind for member in begun),
        driver=at.driver if at is not None else "",
        started_ms=min((member.started_ms for member in begun if member.started_ms), default=0),
        at_ms=max((member.at_ms for member in begun), default=0),
    )
