"""The start of a report: the winner, its gains with tests, its convergence, and the limits of these numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lt_train.metrics import ACCURACIES
from sweeps.analysis import selection
from sweeps.analysis.labels import (
    NO_WIDTH,
    best_text,
    objective_text,
    role,
    seeds_text,
    short_params,
    times_as_long,
    trial_label,
    unfinished,
    verdict_text,
)
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.analysis.statistics import (
    ROUNDING,
    Comparison,
    CurveTrend,
    Trend,
    best_of_bias,
    compare_trials,
    curve_trend,
    estimate,
    expected_best,
    paired,
)
from sweeps.config.plugin_groups import STAGE1_HEAD
from sweeps.reporting.model import Cell, Column, Table, Verdict, format_cell, points, score_columns


def verdict(sweep: Sweep) -> Verdict:
    """The start of a sweep's report."""
    winner = sweep.winner
    return Verdict(
        headline=_headline(sweep),
        about=_about(sweep),
        selected=selected(sweep),
        params="" if winner is None else short_params(winner.trial.params) or "nothing was searched",
        numbers=_numbers(sweep),
        gains=_gains(sweep),
        cautions=tuple(_cautions(sweep)),
        unreadable=_unreadable(sweep),
    )


def selected(sweep: Sweep) -> str:
    """How the winner was selected."""
    chosen = sweep.spec.selection
    text = (
        f"Selected on {chosen.on} {chosen.metric}, {chosen.epoch} epoch, "
        f"{objective_text(chosen.objective, chosen.seeds)}"
    )
    if chosen.finalists and sweep.state == "finished" and sweep.winner is not None:
        each = " of each method" * (len(sweep.methods) > 1)
        text += f"; {best_text(chosen.finalists)}{each} ran again on new seeds, and results are from those runs"
    return f"{text}. Accuracies are on the test set."


def score_cells(runs: TrialRuns) -> list[Cell]:
    """Scores on test: means with intervals."""
    return [estimate(runs.values[:, column]) for column in range(len(runs.scores))]


def _rivals(sweep: Sweep) -> list[tuple[str, TrialRuns]]:
    """What the winner is compared with: the baselines, and the runner-up by the selection metric."""
    several = len(sweep.methods) > 1
    runners = (sweep.methods if several else sweep.ranked)[1:2]
    found = [(name, one) for name, one in sweep.finished_baselines.items()]
    return found + [(f"runner-up ({trial_label(one)})", one) for one in runners]


def _headline(sweep: Sweep) -> str:
    winner = sweep.winner
    if winner is None:
        if not sweep.searched:
            return "No results yet."
        which = "every finished trial" if sweep.state == "unfinished" else "every trial, or every finalist,"
        return f"No {role(sweep)}: {which} failed or was stopped."
    score = sweep.score
    what = f"accuracy over {score.title} classes" if score in ACCURACIES else score.title
    gaps = {name: compare_trials(winner, one)[score.name] for name, one in _rivals(sweep)}
    ties = [name for name, gap in gaps.items() if gap is not None and gap.verdict == "tied"]
    ahead = [name for name in sweep.finished_baselines if (gap := gaps[name]) is not None and gap.behind]
    head, over = sweep.stage1_head, ""
    if head is not None and head.recipe != winner.recipe and (gap := gaps[STAGE1_HEAD]) is not None:
        over = f", {points(gap.difference.value)} points over {STAGE1_HEAD}"
    if sweep.state == "unfinished":
        leads = "leads so far"
    elif ahead:
        leads = "is the best of the searched methods"
    else:
        wins = gaps and all(gap is not None and gap.verdict == "better" for gap in gaps.values())
        leads = "wins" if wins else "ranks first"
    worse = f", but is worse than {' and '.join(ahead)}" if ahead else ""
    tied = f"; tied with {' and '.join(ties)}" if ties else ""
    accuracy = format_cell(estimate(winner.values[:, sweep.column]), "percent")
    return f"{winner.trial.display_name} {leads}{worse}: {accuracy} % {what}{over}{tied}."


def _about(sweep: Sweep) -> str:
    spec, failed = sweep.spec, sum(one.failed for one in sweep.searched)
    stopped = sum(one.stopped is not None for one in sweep.searched)
    part = f"{len(sweep.searched)} of " * (sweep.state == "unfinished")
    trials = f"{part}{sweep.planned_trials} trial{'s' * (sweep.planned_trials != 1)}"
    some = ", ".join(f"{count} {what}" for count, what in ((failed, "failed"), (stopped, "stopped early")) if count)
    methods = ", ".join(one.name for one in spec.candidates())
    classes = f", {sweep.num_classes} classes" if sweep.num_classes else ""
    backbone = f", backbone {spec.backbone.kind}" if spec.backbone else ""
    return (
        f"{trials}{f' ({some})' if some else ''} x {seeds_text(spec.selection.seeds)} of {methods}; data "
        f"{spec.dataset.kind}{classes}{backbone}."
    )


def _numbers(sweep: Sweep) -> Table | None:
    winner = sweep.winner
    if winner is None:
        return None
    rows: list[tuple[Cell, ...]] = [(f"{role(sweep)}, mean ±95%", *score_cells(winner))]
    seeds = len(winner.records)
    if seeds > 1:
        best = selection.reported([sweep.best_seed(winner)])[0]
        rows.append((f"{role(sweep)}, best of {seeds}", *(None if np.isnan(value) else float(value) for value in best)))
        bias = [
            best_of_bias(winner.values[:, column]) if score.percent and score.higher_is_better else None
            for column, score in enumerate(sweep.spec.scores)
        ]
        rows.append((f"expected bias of best of {seeds}*", *bias))
    rows += [(f"{name}, mean ±95%", *score_cells(one)) for name, one in _rivals(sweep)]
    how = "by the selection metric on test" if sweep.spec.selection.on == "test" else "on val"
    note = (
        f"* The best of {seeds} normally distributed seeds lies {expected_best(seeds):.2f} standard deviations above "
        f"their mean if it is selected by that column. Here the seed is selected {how}, so the bias is at most about "
        "this."
    )
    title = f"The {role(sweep)}"
    columns = (Column("%"), *score_columns(sweep.spec.scores))
    return Table("winner", title, columns, tuple(rows), note * (seeds > 1), frozenset({0}))


def _gains(sweep: Sweep) -> Table | None:
    winner, rows = sweep.winner, list[tuple[Cell, ...]]()
    if winner is None:
        return None
    for name, one in _rivals(sweep):
        gaps = compare_trials(winner, one)
        judged = gaps[sweep.score.name]
        cells = [None if gap is None else gap.difference for gap in gaps.values()]
        rows.append((name, *cells, None if judged is None else judged.p_value, verdict_text(judged)))
    columns = (
        Column(f"{role(sweep)} minus"),
        *score_columns(sweep.spec.scores, "points"),
        Column("p", "p"),
        Column("verdict"),
    )
    note = (
        "Percentage points with 95% intervals, paired by seed; Welch's test where no seeds are shared. p and verdict: "
        f"two-sided t test in {sweep.spec.selection.metric}; tied: the interval contains 0; undecided: one run, or all "
        "seeds differ by the same images. Intervals are over seeds of the re-training, for one backbone and one test "
        "set."
    )
    return Table("gains", f"Gain of the {role(sweep)}", columns, tuple(rows), note) if rows else None


def _cautions(sweep: Sweep) -> Iterator[str]:
    winner, chosen = sweep.winner, sweep.spec.selection
    if sweep.state == "unfinished":
        yield f"Unfinished: {unfinished(sweep)}"
    if winner is None:
        yield from _unreadable(sweep)
        return
    yield _new_seeds(sweep, winner)
    if chosen.on == "test":
        yield f"Selected on the test set, as in the paper: the accuracies of the {role(sweep)} are optimistic."
    if len(winner.records) == 1:
        if winner.trial.method.trains:
            yield "One seed: there is no interval and no test, and a difference may be due to chance."
        else:
            yield "The method trains nothing: there is one run, and no extended training."
    elif float(np.ptp(winner.values[:, sweep.column])) < ROUNDING:
        yield NO_WIDTH
    if text := convergence(sweep, winner):
        yield text
    missing = [score for column, score in enumerate(winner.scores) if np.isnan(winner.values[:, column]).any()]
    if empty := [score.title for score in missing if score in ACCURACIES]:
        yield f"No {' and no '.join(empty)} classes in this dataset: shown as a dash, never counted as 0."
    if undefined := [score.title for score in missing if score not in ACCURACIES]:
        yield f"Undefined for the {role(sweep)} and shown as a dash: {', '.join(undefined)}."
    failed = [one for one in sweep.every if one.failed and one is not sweep.extended]
    if failed:
        yield f"{len(failed)} trial{'s' * (len(failed) > 1)} failed and cannot win; see Failures."
    yield from _unreadable(sweep)


def _unreadable(sweep: Sweep) -> tuple[str, ...]:
    return (*sweep.missing, *filter(None, [sweep.test_error]), *sweep.head_errors)


def _new_seeds(sweep: Sweep, winner: TrialRuns) -> str:
    """Whether the winner's accuracy comes from seeds that it was not selected on, and whether its gain persists."""
    chosen = sweep.spec.selection
    before = next((one for one in sweep.searched if _same(one, winner)), None)
    tried = len(sweep.searched)
    if not winner.trial.method.trains and tried > 1:
        return f"Best of {tried} trials by the selection metric. The method trains nothing, so seeds do not matter."
    if winner.trial.phase != "finalist" or before is None:
        if tried == 1:
            return "One trial: nothing was selected among trials."
        return (
            f"Best of {tried} trials on the seeds it was selected on, so its accuracy is optimistic. "
            "selection.finalists reruns the best trials on new seeds."
        )
    assert winner.objective is not None
    assert before.objective is not None
    text = (
        f"On new seeds the {role(sweep)} reaches {100 * winner.objective:.2f} % {chosen.on} {chosen.metric}, against "
        f"{100 * before.objective:.2f} % in the search ({points(winner.objective - before.objective)})"
    )
    head = sweep.stage1_head
    gain = None if head is None else compare_trials(winner, head)[sweep.score.name]
    if gain is None:
        return f"{text}."
    outcome = {
        "better": "its gain over the stage-1 head is confirmed",
        "tied": "its gain over the stage-1 head is not confirmed: tied",
        "worse": "its gain over the stage-1 head is not confirmed: it is worse",
        "undecided": "whether its gain over the stage-1 head is confirmed cannot be tested: "
        + ("there is one run" if gain.test == "none" else "all seeds differ by the same images"),
    }
    return f"{text}; {outcome[gain.verdict]}."


def _same(one: TrialRuns, other: TrialRuns) -> bool:
    return (one.trial.candidate, one.trial.number) == (other.trial.candidate, other.trial.number)


def convergence(sweep: Sweep, runs: TrialRuns) -> str:
    """Whether a trial has converged, by extended training and by its accuracy curve; empty if it trains nothing.

    Smoothed labels can gain early in training and lose later, even below the stage-1 head. Extended training shows
    where more training leads.
    """
    if not runs.trial.method.trains or runs.failed:
        return ""
    curve = curve_trend(runs.curves(sweep.spec.selection.on)[:, :, sweep.column])
    if curve is None:
        return ""
    found = sweep.extended_training
    if found is None:
        return f"{_by_curve(sweep, curve)} {_no_extended_run(sweep)}"
    peak = (
        f"peaks at epoch {curve.peak} ({100 * curve.peak_value:.2f} %) and declines to {100 * curve.last_value:.2f} %"
    )
    own = {
        Trend.DECLINING: f" The accuracy curve of the winner {peak}.",
        Trend.IMPROVING: f" The accuracy curve of the winner is still improving at epoch {curve.epochs}.",
        Trend.STABLE: f" The accuracy curve of the winner is stable at epoch {curve.epochs}.",
        Trend.INCONCLUSIVE: "",
    }
    return _by_extended_training(sweep, found) + own[curve.trend]


def _by_extended_training(sweep: Sweep, found: selection.ExtendedTraining) -> str:
    winner, extended, chosen = sweep.winner, sweep.extended, sweep.spec.selection
    assert winner is not None
    assert extended is not None
    span = ""
    if found.accuracy.low is not None and found.accuracy.high is not None:
        span = f" [{100 * found.accuracy.low:.2f}, {100 * found.accuracy.high:.2f}]"
    on_test = ""
    if chosen.on == "val" and (gap := _test_change(winner, extended)[sweep.column]) is not None:
        on_test = f" ({_points(gap)} on test)"
    epoch = " at its own last epoch" * (chosen.epoch == "best")
    outcome = f"inconclusive with {seeds_text(len(extended.records))}"
    if found.trend is not Trend.INCONCLUSIVE:
        outcome = f"{found.trend}, so the winner has {'' if found.trend is Trend.STABLE else 'not '}converged"
    text = (
        f"Trained {times_as_long(sweep)}: {100 * found.accuracy.value:.2f} %{span} {chosen.on} {chosen.metric} at the "
        f"last epoch, {_points(found.change)} against the winner{epoch}{on_test}: "
        f"{outcome}."
    )
    if found.trend is Trend.DECLINING and not chosen.finalists and len(sweep.searched) > 1:
        text += " Part of the decline is selection bias, because the winner was selected on these seeds."
    if found.over_start is not None:
        where = {
            "worse": "below the stage-1 head",
            "tied": "tied with the stage-1 head",
            "better": "above the stage-1 head",
            "undecided": "away from the stage-1 head, without a test because the difference does not vary",
        }[found.over_start.verdict]
        text += f" It ends {where}: {_points(found.over_start)}."
    return text


def _test_change(winner: TrialRuns, extended: TrialRuns) -> tuple[Comparison | None, ...]:
    """The extended run minus the winner on test by split, both at their last epoch, paired by seed."""
    after, before = (one.ended() for one in (extended, winner))
    return tuple(paired(after[:, column], before[:, column]) for column in range(len(winner.scores)))


def _points(gap: Comparison) -> str:
    return format_cell(gap.difference, "points")


def _no_extended_run(sweep: Sweep) -> str:
    if sweep.spec.selection.extended_training is None:
        return "Extended training is disabled (selection.extended_training is null)."
    if sweep.state == "unfinished":
        return f"At the end of the sweep, the winner is trained {times_as_long(sweep)} to test this."
    if sweep.extended is not None:
        return f"The run trained {times_as_long(sweep)} failed; see Failures."
    return f"It was not trained {times_as_long(sweep)} yet; run `lt-sweep resume {sweep.path.name}` to do so."


def _by_curve(sweep: Sweep, curve: CurveTrend) -> str:
    who = role(sweep)
    if curve.trend is Trend.INCONCLUSIVE:
        return f"It is inconclusive whether the {who} has converged: its accuracy curve has only {curve.epochs} epochs."
    if curve.trend is Trend.DECLINING:
        which = "that epoch" if sweep.spec.selection.epoch == "best" else "the last epoch"
        return (
            f"The {who} has not converged: its accuracy curve peaks at epoch {curve.peak} "
            f"({100 * curve.peak_value:.2f} %) and declines to {100 * curve.last_value:.2f} %; {which} is reported. "
            "Longer training may reduce the accuracy further."
        )
    if curve.trend is Trend.IMPROVING:
        return (
            f"The {who} has not converged: its accuracy curve is still improving at epoch {curve.epochs}. Longer "
            "training may gain more."
        )
    return (
        f"The accuracy curve of the {who} is stable at epoch {curve.epochs}, where the learning rate has decayed to 0. "
        "Only extended training can show convergence."
    )


def extended_table(sweep: Sweep) -> Table | None:
    """The winner beside its extended training, by split; None if there is no such run or it failed."""
    winner, extended, found = sweep.winner, sweep.extended, sweep.extended_training
    if winner is None or extended is None or found is None:
        return None
    chosen, head = sweep.spec.selection, sweep.stage1_head
    rows: list[tuple[Cell, ...]] = []
    if chosen.on == "val":
        before, after = (one.ended("val")[:, sweep.column] for one in (winner, extended))
        over = None if found.over_start is None else found.over_start.difference
        rows.append((f"val {sweep.score.title}", estimate(before), estimate(after), found.change.difference, over))
    change = _test_change(winner, extended)
    start = {} if head is None else compare_trials(extended, head)
    for column, score in enumerate(sweep.spec.scores):
        if score.percent:
            means = (estimate(one.ended()[:, column]) for one in (winner, extended))
            gaps = (None if gap is None else gap.difference for gap in (change[column], start.get(score.name)))
            rows.append((f"test {score.title}", *means, *gaps))
    epochs = winner.trial.training.epochs, extended.trial.training.epochs
    columns = (
        Column("accuracy"),
        Column(f"winner, {epochs[0]} epochs", "percent"),
        Column(f"{times_as_long(sweep)}, {epochs[1]} epochs", "percent"),
        Column("change", "points"),
        Column(f"extended minus {STAGE1_HEAD}", "points"),
    )
    note = (
        f"The configuration and the {seeds_text(len(extended.records))} of the winner, trained for {epochs[1]} epochs "
        "with a learning rate that decays over all of them. Both at their last epoch, paired by seed. This does not "
        "affect the selection."
    )
    if chosen.on == "val":
        note += " The winner was selected on val, so a decline on val alone may be selection bias."
    return Table("extended", f"The winner trained {times_as_long(sweep)}", columns, tuple(rows), note)
