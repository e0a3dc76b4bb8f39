"""Whether a winner stands on a transient: by its curve, and by the run of its setting that trained longer.

Smoothed labels gain on the way and may fall below the stage-1 head when they are trained to the end; so it is looked at
where a longer run leads, at its last epoch. Sentences and a table; knows sweeps as read, and comparisons.
"""

from __future__ import annotations

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.estimate import Estimate
from sweeps.analysis.labels import role, times_as_long
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.analysis.statistics import Ending, as_estimate, difference, ending, estimate, judged
from sweeps.reporting.cells import percent
from sweeps.reporting.formats import shown
from sweeps.reporting.model import Cell, Column, Table

__all__ = ["ending_of", "ending_text", "extended_table"]


def ending_of(sweep: Sweep, setting: TrialRuns) -> Ending | None:
    """How a setting's accuracy curve ends, on what is selected on; None for one that trains nothing."""
    if not setting.trial.method.trains or setting.failed:
        return None
    return ending(judged(setting.records, sweep.spec.selection.on, sweep.column))


def ending_text(sweep: Sweep, end: Ending) -> str:
    """The transient question: answered by the winner trained longer, and by its curve."""
    found = sweep.extended_training
    if found is None:
        return f"{_by_curve(sweep, end)} {_no_longer_run(sweep)}"
    level = {
        "short": "",
        "falling": f" Its own curve peaks at epoch {end.peak} ({100 * end.peak_value:.2f} %) and falls to "
        f"{100 * end.last_value:.2f} %.",
        "rising": f" Its own curve still rises at epoch {end.epochs}.",
        "level": f" Its own curve is level at epoch {end.epochs}.",
    }
    return _by_longer_run(sweep, found) + level[end.shape]


def _by_longer_run(sweep: Sweep, found: selection.ExtendedTraining) -> str:
    winner, extended, chosen = sweep.winner, sweep.extended, sweep.spec.selection
    assert winner is not None
    assert extended is not None
    seeds = selection.seeds_told(len(extended.records))
    says = {
        "falls": "so the winner stands on a transient",
        "level": "which is level: no transient",
        "gains": "so it gains further, and was not trained to its end",
        "unclear": f"and whether that is a transient cannot be told with {seeds}",
    }
    span = "" if found.ci95 is None else f" [{percent(found.ci95.low)}, {percent(found.ci95.high)}]"
    beside = ""
    if chosen.on == "val":
        gap = _change(winner, extended)[sweep.column]
        beside = f", on test {shown(gap, 'points')}" if gap else ""
    start = {
        None: "",
        "below": f" It falls below the stage-1 head: {_points(found.over_start)}.",
        "level": f" It ends level with the stage-1 head: {_points(found.over_start)}.",
        "above": f" It stays above the stage-1 head: {_points(found.over_start)}.",
        "unclear": " On which side of the stage-1 head it ends cannot be told with "
        f"{seeds}: {_points(found.over_start)}.",
    }
    lucky = found.ends == "falls" and not chosen.finalists and len(sweep.searched) > 1
    picked = " at its own last epoch" * (chosen.epoch == "best")
    picked += " (some of it the luck that it was chosen by, on these very seeds)" * lucky
    return (
        f"Trained {times_as_long(sweep)} it reaches {100 * found.mean:.2f} %{span} {chosen.on} {chosen.metric} at its "
        f"last epoch, {_points(found.change)} against the winner{picked}{beside}, {says[found.ends]}."
        f"{start[found.beside_start]}"
    )


def _change(winner: TrialRuns, extended: TrialRuns) -> tuple[Estimate | None, ...]:
    """The longer run minus the winner on test by split, both at their last epoch; they have the same seeds."""
    after, before = (selection.ended(one.records) for one in (extended, winner))
    return tuple(as_estimate(selection.paired(after[:, place], before[:, place])) for place in range(len(SPLITS)))


def _points(gap: selection.MeanDifference | None) -> str:
    return "" if gap is None else shown(as_estimate(gap), "points")


def _no_longer_run(sweep: Sweep) -> str:
    if sweep.spec.selection.extended_training is None:
        return "No longer run was asked for (selection.extended_training is null)."
    if sweep.state == "unfinished":
        return f"In the end whoever wins is trained {times_as_long(sweep)}, to say where it leads."
    if sweep.extended is not None:
        return f"The run {times_as_long(sweep)} failed; the reason is at the end."
    return f"It was not trained longer yet; `lt-sweep resume {sweep.path.name}` trains it {times_as_long(sweep)}."


def _by_curve(sweep: Sweep, end: Ending) -> str:
    stands = "that epoch counts" if sweep.spec.selection.epoch == "best" else "its last epoch counts"
    who = role(sweep)
    if end.shape == "short":
        return f"Too few epochs ({end.epochs}) to say by its curve whether the {who} stands on a transient."
    if end.shape == "falling":
        return (
            f"The {who} stands on a transient: its curve peaks at epoch {end.peak} ({100 * end.peak_value:.2f} %) and "
            f"falls to {100 * end.last_value:.2f} %; {stands}. Trained longer it may lose more."
        )
    if end.shape == "rising":
        return (
            f"The {who} stands on a transient: its curve still rises at epoch {end.epochs}; more epochs may add to it."
        )
    return (
        f"No transient by its curve, which is level at epoch {end.epochs}; but the learning rate falls to 0 there, so "
        "only a longer run can say where it leads."
    )


def extended_table(sweep: Sweep) -> Table | None:
    """The winner beside its setting trained longer, by split; None where there is no such run, or it failed."""
    winner, extended, found = sweep.winner, sweep.extended, sweep.extended_training
    if winner is None or extended is None or found is None:
        return None
    chosen, vanilla, split = sweep.spec.selection, sweep.sound_baselines.get("vanilla"), SPLITS[sweep.column]
    rows: list[tuple[Cell, ...]] = []
    if chosen.on == "val":
        before, after = (selection.ended(one.records, "val")[:, sweep.column] for one in (winner, extended))
        over = None if found.over_start is None else as_estimate(found.over_start)
        rows.append((f"val {split}", estimate(before), estimate(after), as_estimate(found.change), over))
    change = _change(winner, extended)
    start = (None,) * len(SPLITS) if vanilla is None else difference(extended, vanilla, sweep.column).by_split
    for place, name in enumerate(SPLITS):
        means = (estimate(selection.ended(one.records)[:, place]) for one in (winner, extended))
        rows.append((f"test {name}", *means, change[place], start[place]))
    epochs = winner.trial.training.epochs, extended.trial.training.epochs
    columns = (
        Column("accuracy"),
        Column(f"winner, {epochs[0]} epochs", "percent"),
        Column(f"{times_as_long(sweep)}, {epochs[1]} epochs", "percent"),
        Column("change", "points"),
        Column("longer minus vanilla", "points"),
    )
    note = (
        f"The winner's setting on its {len(extended.records)} seed{'s' * (len(extended.records) > 1)}, its learning rate "
        f"falling over {epochs[1]} epochs; both at their last epoch, paired by seed. It decides nothing."
    )
    if chosen.on == "val":
        note += " The winner was chosen by val, which flatters it there: a loss on val alone may be that."
    return Table("extended", f"The winner trained {times_as_long(sweep)}", columns, tuple(rows), note)
