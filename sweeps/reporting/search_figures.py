"""Data of figures of the search: history, epochs, and the objective against the searched values.

Methods are searched separately and have a panel each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lt_train.metrics import ACCURACIES
from sweeps.analysis.labels import role, short_params, times_as_long, trial_label
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.config.methods import Candidate
from sweeps.reporting.model import Column, Figure, Line, Panel, Series, Table
from sweeps.reporting.verdict import convergence
from sweeps.search.algorithms import MAX_TRIALS, MIN_TRIALS, importances
from sweeps.search.base import LogUniform, Uniform

BINS = 8
"""Bins of a continuous range for the line through its trials."""

MOST_LINES = 200
"""Most lines of parallel coordinates: they can still be distinguished, and the page stays small."""

NEAR = 0.005
"""Trials within half a point of the best count as near it."""


def _complete(sweep: Sweep, method: str | None = None) -> list[TrialRuns]:
    """Trials of the search that did not fail and were not stopped, of one candidate method or of all."""
    return [
        one
        for one in sweep.searched
        if one.objective is not None and one.stopped is None and method in (None, one.trial.candidate)
    ]


def history(sweep: Sweep) -> Figure | None:
    """The objective by trial, the best so far, and failed and stopped trials."""
    panels = []
    for candidate in _candidates(sweep):
        own = [one for one in sweep.searched if one.trial.candidate == candidate.name]
        known = [one for one in own if one.objective is not None]
        if not known:
            continue
        series = [_trials("trials", [one for one in known if one.stopped is None])]
        if stopped := [one for one in known if one.stopped is not None]:
            series.append(_trials("stopped early", stopped, mark="hollow", style=3))
        best, so_far = -math.inf, []
        complete = [one for one in known if one.stopped is None]
        for one in complete:
            best = max(best, one.objective or 0.0)
            so_far.append(100 * best)
        series.append(
            Series("best so far", [float(one.trial.number) for one in complete], so_far, mark="steps", style=1)
        )
        if failed := [one for one in own if one.objective is None]:
            floor = 100 * min(one.objective or 0.0 for one in known)
            numbers = [float(one.trial.number) for one in failed]
            series.append(Series("failed", numbers, [floor] * len(failed), mark="cross", style=2))
        panels.append(Panel("trial", _objective_label(sweep), tuple(series), title=candidate.name))
    if not panels:
        return None
    done, count = len(sweep.searched), sum(one.objective is None for one in sweep.searched)
    return Figure(
        "history",
        "Search history",
        "One point per trial, in the order of the search. Failed trials are crosses at the bottom.",
        f"Scatter plot of the objective of {done} trials, {count} of them failed, with the best so far as a step line.",
        tuple(panels),
    )


def epochs(sweep: Sweep) -> Figure | None:
    """Accuracy after every epoch of the winner and of its extended training, with the stage-1 head as a line."""
    winner, extended = sweep.winner, sweep.extended if sweep.extended_training is not None else None
    if winner is None or (extended or winner).records[0].epochs < 2:  # trains nothing, or one epoch
        return None
    panels = []
    sets: list[Literal["val", "test"]] = ["val", "test"] if winner.has_val else ["test"]
    for on in sets:
        series, lines = [], []
        for column, score in enumerate(winner.scores):
            one = _along(score.title, winner, on, column)
            if score.percent and any(value is not None for value in one.y):
                series.append(replace(one, style=_style(column), faint=column != sweep.column))
        if extended is not None:
            name = f"{sweep.score.title}, {times_as_long(sweep)}"
            series.append(replace(_along(name, extended, on, sweep.column), style=4))
        head = sweep.stage1_head
        if head is not None and (on == "test" or head.has_val):
            start = head.curves(on)[:, :, sweep.column].mean()
            lines.append(Line(f"stage-1 head, {sweep.score.title}", y=100 * float(start), style=5))
        what = "accuracy" if len(winner.scores) == len(ACCURACIES) else "score"
        panels.append(Panel("epoch", f"{on} {what}, %", tuple(series), f"on {on}", tuple(lines)))
    for column, score in enumerate(winner.scores):
        if not score.percent:
            plain = [replace(_along(on, winner, on, column), style=style) for style, on in enumerate(sets)]
            panels.append(Panel("epoch", score.name, tuple(plain), score.name))
    outcome = convergence(sweep, winner)
    seeds = len(winner.records)
    over = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    caption = f"Accuracy of the {role(sweep)} after every epoch, {over}. {outcome}"
    alt = f"Line plot of the accuracy of {trial_label(winner)} by epoch and split on {' and '.join(sets)}. {outcome}"
    return Figure("epochs", "Accuracy by epoch", caption, alt, tuple(panels))


def _along(name: str, runs: TrialRuns, on: Literal["val", "test"], column: int) -> Series:
    mean = runs.curves(on)[:, :, column].mean(axis=0)
    scale = 100 if runs.scores[column].percent else 1
    curve = [None if math.isnan(value) else scale * float(value) for value in mean]
    return Series(name, [float(epoch) for epoch in range(1, len(curve) + 1)], curve)


def _style(column: int) -> int:
    """The style of a column; 4 and 5 are those of the extended training and of the stage-1 head."""
    return column if column < len(ACCURACIES) else 6 + (column - len(ACCURACIES)) % 2


def smooth_factor(sweeps: Sequence[Sweep]) -> Figure | None:
    """Fig. 4: accuracy against smooth factor, one line per sweep."""
    series, path = [], "method.smooth_factor"
    for style, sweep in enumerate(sweeps):
        own = [one for one in _complete(sweep) if path in one.trial.params]
        if len(own) < 2:
            continue
        name = _ratio(sweep) if len(sweeps) > 1 else "best trial per range"
        x = [float(one.trial.params[path]) for one in own]
        y = [100 * float(one.values[:, sweep.column].mean()) for one in own]
        series.append(Series(f"trials{f', {name}' if len(sweeps) > 1 else ''}", x, y, "points", style, faint=True))
        ranges = [one.space[path] for one in sweep.spec.candidates() if path in one.space]
        line = _envelope(own, x, y, exact=not any(isinstance(one, Uniform | LogUniform) for one in ranges))
        series.append(Series(name, [a for a, _ in line], [b for _, b in line], style=style))
    if not series:
        return None
    score = sweeps[0].score
    what = f"accuracy ({score.title})" if score in ACCURACIES else score.title
    return Figure(
        "smooth_factor",
        "Accuracy against smooth factor (Fig. 4)",
        "Points are trials, which differ in their other parameters. The line connects the best trials, by the "
        "selection metric, of each value or range of the smooth factor.",
        f"Scatter plot of test {what} against smooth factor for {len(series) // 2} sweep(s). "
        + " ".join(f"{one.name}: {_trend(one)}" for one in series[1::2]),
        (Panel("smooth factor", f"test {what}, %", tuple(series)),),
    )


def lr_weight_decay(sweep: Sweep) -> Figure | None:
    """Fig. 5: objective over learning rate and weight decay; a heat map for a grid, else one point per trial."""
    panels, captions = [], dict[str, None]()
    lr, decay = "method.lr", "method.weight_decay"
    for candidate in _candidates(sweep):
        own = [one for one in _complete(sweep, candidate.name) if {lr, decay} <= one.trial.params.keys()]
        if len(own) < 2:
            continue
        x, y = ([float(one.trial.params[path]) for one in own] for path in (lr, decay))
        value = [100 * (one.objective or 0.0) for one in own]
        grid = len(set(x)) * len(set(y)) <= len(own) * 1.01
        if grid:
            panels.append(_heat_map(candidate.name, x, y, value, _objective_label(sweep)))
            captions["One cell per pair of values, showing its best trial; more intense is better."] = None
            continue
        captions["One point per trial; larger and more intense is better; the star is the best."] = None
        points = Series("trials", x, y, mark="points", value=value)
        top = int(np.argmax(value))
        star = Series("best", [x[top]], [y[top]], mark="star", style=1)
        log = [isinstance(candidate.space[path], LogUniform) for path in (lr, decay)]
        panels.append(
            Panel(
                "learning rate",
                "weight decay",
                (points, star),
                candidate.name,
                x_log=log[0],
                y_log=log[1],
                value_label=_objective_label(sweep),
            )
        )
    if not panels:
        return None
    return Figure(
        "lr_weight_decay",
        "Learning rate and weight decay (Fig. 5)",
        f"{' '.join(captions)} Trials may differ in other parameters.",
        f"{_objective_label(sweep)} over learning rate and weight decay for {', '.join(p.title for p in panels)}.",
        tuple(panels),
    )


def parallel(sweep: Sweep) -> Figure | None:
    """Parallel coordinates: one axis per searched parameter and the objective; the best tenth is highlighted."""
    panels, rows = [], []
    for candidate in _candidates(sweep):
        own = sorted(_complete(sweep, candidate.name), key=lambda one: one.objective or 0.0)
        paths = list(candidate.space)
        if len(own) < 2 or not paths:
            continue
        axes = [_axis(candidate, path, [one.trial.params[path] for one in own]) for path in paths]
        axes.append(_scaled([one.objective or 0.0 for one in own]))
        top = max(1, round(len(own) / 10))
        leading = min(top, MOST_LINES // 2)
        thinned = {
            *range(len(own) - leading, len(own)),
            *np.linspace(0, len(own) - 1, MOST_LINES - leading).astype(int).tolist(),
        }
        series = [
            Series(
                "best tenth" if trial >= len(own) - top else "other trials",
                [float(axis) for axis in range(len(axes))],
                [axis[trial] for axis in axes],
                style=1 if trial >= len(own) - top else 0,
                faint=trial < len(own) - top,
            )
            for trial in sorted(thinned)
        ]
        named = {float(axis): short for axis, short in enumerate([*map(_short, paths), _objective_label(sweep)])}
        panels.append(Panel("", "lowest to highest value", tuple(series), candidate.name, x_ticks=named))
        rows += [(candidate.name, one.trial.number, short_params(one.trial.params), one.objective) for one in own]
    if not panels:
        return None
    data = Table(
        "parallel",
        "Parallel coordinates",
        tuple(map(Column, ("method", "trial", "parameters", "objective"))),
        tuple(rows),
    )
    return Figure(
        "parallel",
        "Parallel coordinates",
        "One line per trial. Each axis runs from the lowest to the highest value tried, on the scale of the search. "
        f"The best tenth is highlighted. At most {MOST_LINES} lines; all trials are in runs.csv.",
        f"Parallel coordinates of {len(rows)} trials and their parameters; the best tenth is highlighted.",
        tuple(panels),
        columns=1,
        data=data,
    )


def importance(sweep: Sweep) -> Figure | None:
    """Share of the variance of the objective that each parameter explains, on a sample of very many trials."""
    panels, samples, candidates = [], [], _candidates(sweep)
    # The time grows almost quadratically with the number of trials; this bounds it for all candidates together.
    most = int(MAX_TRIALS / max(len(candidates), 1) ** (2 / 3))
    for candidate in candidates:
        known = [(one.trial.params, one.objective or 0.0) for one in _complete(sweep, candidate.name)]
        shares = importances(candidate.space, known, most)
        if len(shares) < 2:
            continue
        x = [float(bar) for bar in range(len(shares))]
        named = {float(bar): _short(path) for bar, path in enumerate(shares)}
        bars = Series("importance", x, list(shares.values()), mark="bars")
        panels.append(Panel("", "share of the variance", (bars,), candidate.name, x_ticks=named))
        if len(known) > most:
            samples.append(f"a random sample of {most:,} of {len(known):,} trials of {candidate.name}")
    if not panels:
        return None
    sampled = f" Computed on {' and '.join(samples)}." if samples else ""
    shares_text = "; ".join(
        f"{panel.title}: " + ", ".join(f"{(panel.x_ticks or {})[x]} {y:.2f}" for x, y in zip(one.x, one.y, strict=True))
        for panel in panels
        for one in panel.series
    )
    return Figure(
        "importance",
        "Parameter importance",
        "Share of the variance of the objective over the searched ranges that a parameter explains alone (fANOVA of "
        f"Optuna), for searches with at least {MIN_TRIALS} complete trials.{sampled}",
        f"Bar chart of the importance of searched parameters. {shares_text}.",
        tuple(panels),
    )


def slices(sweep: Sweep) -> Figure | None:
    """The objective against each searched parameter, with the best trial: how sharp the optimum is."""
    winner = sweep.winner
    if winner is None:
        return None
    candidate = next(one for one in sweep.spec.candidates() if one.name == winner.trial.candidate)
    own = _complete(sweep, candidate.name)
    panels = []
    for path, dimension in candidate.space.items():
        values = [one.trial.params[path] for one in own]
        if len(own) < 2:
            return None
        x, ticks = _numbers(values)
        y = [100 * (one.objective or 0.0) for one in own]
        top = int(np.argmax(y))
        series = (
            Series("trials", x, y, mark="points"),
            Series("best", [x[top]], [y[top]], mark="star", style=1),
        )
        band = Line("half a point below", y=y[top] - 100 * NEAR, style=5)
        log = isinstance(dimension, LogUniform)
        panels.append(Panel(_short(path), _objective_label(sweep), series, lines=(band,), x_log=log, x_ticks=ticks))
    if not panels:
        return None
    return Figure(
        "slices",
        f"Around the {role(sweep)} ({candidate.name})",
        "The objective against each searched parameter. Points above the dashed line lie within half a point of the "
        "best trial (star). The sensitivity table shows their range.",
        f"Scatter plots of the objective against each of {len(panels)} searched parameters of {candidate.name}.",
        tuple(panels),
        columns=3,
    )


def near_best(sweep: Sweep) -> Table | None:
    """Sensitivity: the range of each parameter among the trials near the best."""
    winner = sweep.winner
    if winner is None:
        return None
    own = _complete(sweep, winner.trial.candidate)
    if len(own) < 2 or not winner.trial.params:
        return None
    best = max(one.objective or 0.0 for one in own)
    near = [one for one in own if (one.objective or 0.0) >= best - NEAR]
    rows: list[tuple[Any, ...]] = []
    for path, value in winner.trial.params.items():
        tried, good = ([one.trial.params[path] for one in some] for some in (own, near))
        rows.append((path, _range([value]), _range(good), _range(tried)))
    columns = tuple(map(Column, ("parameter", role(sweep), f"{len(near)} near the best", f"all {len(own)} trials")))
    note = f"Near the best: within {100 * NEAR:g} points in the selection metric. A wide range means a flat optimum."
    return Table("sensitivity", f"Sensitivity around the {role(sweep)}", columns, tuple(rows), note)


def _axis(candidate: Candidate, path: str, values: Sequence[Any]) -> list[float]:
    numbers, _ = _numbers(values)
    return _scaled([math.log(v) for v in numbers] if isinstance(candidate.space[path], LogUniform) else numbers)


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [0.5 if high == low else (value - low) / (high - low) for value in values]


def _numbers(values: Sequence[Any]) -> tuple[list[float], Mapping[float, str] | None]:
    """Values as positions on an axis; words get one position each, with tick labels."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], None
    words = sorted({str(value) for value in values})
    return [float(words.index(str(value))) for value in values], {float(i): word for i, word in enumerate(words)}


def _range(values: Sequence[Any]) -> str:
    """`0.31 to 0.97`, or the distinct words."""
    numbers, words = _numbers(values)
    if words is not None:
        return ", ".join(sorted({str(value) for value in values}))
    low, high = min(numbers), max(numbers)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _short(path: str) -> str:
    return path.removeprefix("method.").removeprefix("training.")


def _candidates(sweep: Sweep) -> list[Candidate]:
    """Candidate methods with a search space, best first, at most six."""
    rank = {one.trial.candidate: number for number, one in enumerate(sweep.methods)}
    found = [one for one in sweep.spec.candidates() if one.space]
    return sorted(found, key=lambda one: rank.get(one.name, len(rank)))[:6]


def _trials(name: str, trials: Sequence[TrialRuns], mark: Any = "points", style: int = 0) -> Series:
    x = [float(one.trial.number) for one in trials]
    return Series(name, x, [100 * (one.objective or 0.0) for one in trials], mark=mark, style=style)


def _objective_label(sweep: Sweep) -> str:
    """Axis label of the objective."""
    return f"{sweep.spec.selection.on} {sweep.spec.selection.metric}, %"


def _ratio(sweep: Sweep) -> str:
    ratio = getattr(sweep.spec.dataset, "imbalance_ratio", None)
    if ratio is None and sweep.manifest is not None:
        smallest = max(1, min(sweep.manifest.class_counts))
        ratio = max(sweep.manifest.class_counts) / smallest
    return f"{sweep.spec.name}, IR {ratio:.3g}" if ratio else sweep.spec.name


def _envelope(
    trials: Sequence[TrialRuns], x: Sequence[float], y: Sequence[float], *, exact: bool
) -> list[tuple[float, float]]:
    """The best trial of each value, or of each of `BINS` ranges of a continuous dimension."""
    low, high = min(x), max(x)
    exact = exact or len(set(x)) <= BINS
    bins: dict[float, list[int]] = {}
    for place, value in enumerate(x):
        key = value if exact else min(BINS - 1, math.floor(BINS * (value - low) / (high - low)))
        bins.setdefault(key, []).append(place)
    best = [max(places, key=lambda p: trials[p].objective or 0.0) for _, places in sorted(bins.items())]
    return sorted((x[place], y[place]) for place in best)


def _trend(line: Series) -> str:
    known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
    top = max(known, key=lambda point: point[1])
    return f"{known[0][1]:.2f} % at {known[0][0]:.3g}, best {top[1]:.2f} % at {top[0]:.3g}."


def _heat_map(title: str, x: Sequence[float], y: Sequence[float], value: Sequence[float], label: str) -> Panel:
    """Cells of a grid on evenly spaced axes, each showing its best trial."""
    columns, rows = sorted(set(x)), sorted(set(y))
    cells: dict[tuple[int, int], float] = {}
    for a, b, v in zip(x, y, value, strict=True):
        key = (columns.index(a), rows.index(b))
        cells[key] = max(v, cells.get(key, -math.inf))
    series = Series(
        "grid",
        [float(a) for a, _ in cells],
        [float(b) for _, b in cells],
        mark="cells",
        value=list(cells.values()),
        label=[f"{v:.1f}" for v in cells.values()],
    )
    ticks = [{float(place): f"{v:.2g}" for place, v in enumerate(values)} for values in (columns, rows)]
    return Panel(
        "learning rate", "weight decay", (series,), title, x_ticks=ticks[0], y_ticks=ticks[1], value_label=label
    )
