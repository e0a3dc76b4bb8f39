"""The first screen of a report: who leads, by how much, by which test, and what to hold against it.

Every sentence follows from the records; nothing is drawn. Knows sweeps as read, and comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.labels import NO_WIDTH, called, role, short_params, unfinished
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.analysis.statistics import difference, estimate
from sweeps.reporting.cells import points
from sweeps.reporting.convergence import ending_of, ending_text
from sweeps.reporting.formats import shown
from sweeps.reporting.model import Cell, Column, Table, Verdict

__all__ = ["selected", "verdict"]

BY_SPLIT = tuple(Column(split, "percent") for split in SPLITS)


def verdict(sweep: Sweep) -> Verdict:
    """What came out."""
    winner = sweep.winner
    return Verdict(
        headline=_headline(sweep),
        about=_about(sweep),
        selected=selected(sweep),
        params="" if winner is None else short_params(winner.trial.params) or "nothing was searched",
        numbers=_numbers(sweep),
        gains=_gains(sweep),
        cautions=tuple(_cautions(sweep)),
    )


def selected(sweep: Sweep) -> str:
    """What the numbers were selected on."""
    chosen = sweep.spec.selection
    whose = selection.chosen_over(chosen.objective, chosen.seeds)
    text = f"Selected on {chosen.on} {chosen.metric}, {chosen.epoch} epoch, {whose}"
    if chosen.finalists and sweep.state == "finished" and sweep.winner is not None:
        each = " of each method" * (len(sweep.methods) > 1)
        text += f"; {selection.best_told(chosen.finalists)}{each} ran again on fresh seeds, and these are those numbers"
    return f"{text}. Accuracies are on the test set."


def _rivals(sweep: Sweep) -> list[tuple[str, TrialRuns]]:
    """Whom the winner is compared with: baselines, and the runner-up by what is selected on."""
    several = len(sweep.methods) > 1
    runners = (sweep.methods if several else sweep.ranked)[1:2]
    found = [(name, one) for name, one in sweep.sound_baselines.items()]
    return found + [(f"runner-up ({called(sweep, one)})", one) for one in runners]


def _headline(sweep: Sweep) -> str:
    winner = sweep.winner
    if winner is None:
        some = "every trial that is finished" if sweep.state == "unfinished" else "every trial, or every finalist,"
        return f"No {role(sweep)}: {some} failed or was stopped." if sweep.searched else "Nothing to show yet."
    mean = estimate(winner.values[:, sweep.column])
    split = SPLITS[sweep.column]
    which = "all classes" if split == "all" else f"{split} classes"
    gaps = {name: difference(winner, one, sweep.column) for name, one in _rivals(sweep)}
    ties = [name for name, gap in gaps.items() if gap.verdict == "tied"]
    ahead = [name for name in sweep.sound_baselines if gaps[name].behind(sweep.column)]
    vanilla = sweep.sound_baselines.get("vanilla")
    over = ""
    if vanilla is not None and vanilla.recipe != winner.recipe:
        gap = gaps["vanilla"].by_split[sweep.column]
        over = f", {shown(gap.mean, 'points')} points over vanilla" if gap else ""
    if sweep.state == "unfinished":
        leads = "leads so far"
    elif ahead:
        leads = "is the best that was searched"
    else:
        leads = "wins" if gaps and all(gap.verdict == "better" for gap in gaps.values()) else "is first"
    worse = f", and worse than {' and '.join(ahead)}" if ahead else ""
    tied = f"; tied with {' and '.join(ties)}" if ties else ""
    method = winner.trial.called
    return f"{method} {leads}{worse}: {shown(mean, 'percent')} % right over {which}{over}{tied}."


def _about(sweep: Sweep) -> str:
    spec, failed = sweep.spec, sum(one.failed for one in sweep.searched)
    stopped = sum(one.stopped is not None for one in sweep.searched)
    of = f"{len(sweep.searched)} of " * (sweep.state == "unfinished") + f"{sweep.asked} trial{'s' * (sweep.asked != 1)}"
    some = ", ".join(f"{count} {what}" for count, what in ((failed, "failed"), (stopped, "stopped early")) if count)
    methods = ", ".join(one.name for one in spec.candidates())
    told = f"{of}{f' ({some})' if some else ''} x {selection.seeds_told(spec.selection.seeds)} of {methods}"
    classes = f", {sweep.num_classes} classes" if sweep.num_classes else ""
    backbone = f" through {spec.backbone.kind}" if spec.backbone else ""
    return f"{told}; data {spec.dataset.kind}{classes}{backbone}."


def _numbers(sweep: Sweep) -> Table | None:
    winner = sweep.winner
    if winner is None:
        return None
    rows: list[tuple[Cell, ...]] = [(f"{role(sweep)}, mean ±95%", *_means(winner))]
    seeds = len(winner.records)
    if seeds > 1:
        best = selection.reported([sweep.best_seed(winner)])[0]
        rows.append((f"{role(sweep)}, best of {seeds}", *(None if np.isnan(value) else float(value) for value in best)))
        bias = [selection.best_of_bias(winner.values[:, place]) for place in range(len(SPLITS))]
        rows.append((f"of which luck in best of {seeds}, expected*", *bias))
    rows += [(f"{name}, mean ±95%", *_means(one)) for name, one in _rivals(sweep)]
    chosen = sweep.spec.selection
    how = "that seed is the best by what is selected on" if chosen.on == "test" else "the seed is chosen on val"
    note = (
        f"* {selection.expected_best(seeds):.2f} standard deviations: by how much the best of {seeds} normal seeds "
        f"lies above their mean if it is chosen by that very column. Here {how}, so it is at most about this."
    )
    return Table(
        "winner", f"The {role(sweep)}", (Column("%"), *BY_SPLIT), tuple(rows), note * (seeds > 1), frozenset({0})
    )


def _means(setting: TrialRuns) -> list[Cell]:
    return [estimate(setting.values[:, place]) for place in range(len(SPLITS))]


def _gains(sweep: Sweep) -> Table | None:
    winner, rows = sweep.winner, []
    if winner is None:
        return None
    for name, one in _rivals(sweep):
        gap = difference(winner, one, sweep.column)
        rows.append((name, *gap.by_split, gap.p_value, gap.told))
    metric = sweep.spec.selection.metric
    columns = (
        Column(f"{role(sweep)} minus"),
        *(Column(split, "points") for split in SPLITS),
        Column("p", "p"),
        Column("is"),
    )
    note = (
        f"Points, with 95% intervals; paired by seed, by Welch's test where no seed is shared. p and the last column: "
        f"two-sided t test in {metric}; tied: the interval holds 0; no spread: all seeds differ by the same images, "
        "and no test can say more than the mean. Intervals are over seeds of the re-training: one "
        "backbone, one test set."
    )
    return Table("gains", f"Gain of the {role(sweep)}", columns, tuple(rows), note) if rows else None


def _cautions(sweep: Sweep) -> Iterator[str]:
    winner, chosen = sweep.winner, sweep.spec.selection
    if sweep.state == "unfinished":
        yield f"Unfinished: {unfinished(sweep)}"
    if winner is None:
        yield from sweep.missing
        return
    yield _fresh(sweep, winner)
    if chosen.on == "test":
        yield f"Selected on the test set, as the paper does: these accuracies flatter the {role(sweep)}."
    if len(winner.records) == 1:
        trains = winner.trial.method.trains
        yield (
            "One seed: no interval and no test; a difference may be luck."
            if trains
            else "It trains nothing: one run, and none that could be trained longer."
        )
    elif float(np.ptp(winner.values[:, sweep.column])) < selection.ROUNDING:
        yield NO_WIDTH
    end = ending_of(sweep, winner)
    if end is not None:
        yield ending_text(sweep, end)
    empty = [split for place, split in enumerate(SPLITS) if np.isnan(winner.values[:, place]).all()]
    if empty:
        yield f"No {' and no '.join(empty)} classes in this dataset: shown as a dash and left out, never counted as 0."
    failed = [one for one in sweep.every if one.failed and one is not sweep.extended]
    if failed:
        yield f"{len(failed)} settings failed and cannot win; they are listed at the end."
    yield from sweep.missing


def _fresh(sweep: Sweep, winner: TrialRuns) -> str:
    chosen = sweep.spec.selection
    before = next((one for one in sweep.searched if _same(one, winner)), None)
    tried = len(sweep.searched)
    if not winner.trial.method.trains and tried > 1:
        return f"Best of {tried} trials by what is selected on; it trains nothing, so no seed could tell otherwise."
    if winner.trial.phase != "finalist" or before is None:
        if tried == 1:
            return "One setting was tried, so nothing was chosen among trials."
        return (
            f"Best of {tried} trials on the seeds it was chosen by, which flatters it; selection.finalists runs the "
            "best again on fresh seeds."
        )
    assert winner.objective is not None
    assert before.objective is not None
    change = winner.objective - before.objective
    text = (
        f"On fresh seeds the {role(sweep)} has {100 * winner.objective:.2f} % {chosen.on} {chosen.metric}, "
        f"{100 * before.objective:.2f} % in the search ({points(change)})"
    )
    vanilla = sweep.sound_baselines.get("vanilla")
    if vanilla is None:
        return f"{text}."
    says = {
        "better": "its gain over vanilla survives them",
        "tied": "its gain over vanilla does not survive them: tied",
        "worse": "its gain over vanilla does not survive them: it is worse",
        "no spread": "these agree to the image, so no test says whether its gain over vanilla survives them",
    }.get(difference(winner, vanilla, sweep.column).verdict, "one seed cannot say whether its gain survives")
    return f"{text}; {says}."


def _same(one: TrialRuns, other: TrialRuns) -> bool:
    return (one.trial.candidate, one.trial.number) == (other.trial.candidate, other.trial.number)
