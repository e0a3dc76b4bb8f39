"""What a search looked like, as figures' data: history, epochs, smooth factor, learning rate x weight decay. Pure.

Figures are of one method, or of several, whose searches are separate. Nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.labels import called, role, times_as_long
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.analysis.statistics import judged, mean_curve
from sweeps.config.methods import Candidate
from sweeps.reporting.convergence import ending_of, ending_text
from sweeps.reporting.model import Figure, Line, Panel, Series
from sweeps.search.base import LogUniform, Uniform

__all__ = [
    "candidates_shown",
    "epochs",
    "history",
    "lr_weight_decay",
    "objective_label",
    "smooth_factor",
    "whole",
]

BINS = 8
"""Of a continuous range, where a line is drawn through its trials."""


def whole(sweep: Sweep, method: str | None = None) -> list[TrialRuns]:
    """Trials of the search that have a value and ran to the end, of one candidate or of all."""
    return [
        one
        for one in sweep.searched
        if one.objective is not None and one.stopped is None and method in (None, one.trial.candidate)
    ]


def history(sweep: Sweep) -> Figure | None:
    """The objective by trial, the best so far, and what failed or was stopped."""
    panels = []
    for candidate in candidates_shown(sweep):
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
        panels.append(Panel("trial", objective_label(sweep), tuple(series), title=candidate.name))
    if not panels:
        return None
    done, count = len(sweep.searched), sum(one.objective is None for one in sweep.searched)
    return Figure(
        "history",
        "Search history",
        "One point a trial, in the order it was asked; failed trials are crosses at the foot.",
        f"Objective against trial number for {done} trials, {count} of them failed; the best so far is a step line.",
        tuple(panels),
    )


def epochs(sweep: Sweep) -> Figure | None:
    """Accuracy after every epoch of the winner, and trained longer, beside where the stage-1 head stands."""
    winner, extended = sweep.winner, sweep.extended if sweep.extended_training is not None else None
    if winner is None or len((extended or winner).records[0].test) < 2:  # it trains nothing, or for one epoch
        return None
    panels = []
    sets: list[Literal["val", "test"]] = ["val", "test"] if winner.records[0].val else ["test"]
    for on in sets:
        series, lines = [], []
        for style, split in enumerate(SPLITS):
            one = _along(split, winner, on, style)
            if any(value is not None for value in one.y):
                series.append(replace(one, style=style, faint=style != sweep.column))
        if extended is not None:
            name = f"{SPLITS[sweep.column]}, {times_as_long(sweep)}"
            series.append(replace(_along(name, extended, on, sweep.column), style=4))
        vanilla = sweep.sound_baselines.get("vanilla")
        if vanilla is not None and (on == "test" or vanilla.records[0].val):
            start = judged(vanilla.records, on, sweep.column).mean()
            lines.append(Line(f"stage-1 head, {SPLITS[sweep.column]}", y=100 * float(start), style=5))
        panels.append(Panel("epoch", f"{on} accuracy, %", tuple(series), f"on {on}", tuple(lines)))
    end = ending_of(sweep, winner)
    told = "" if end is None else ending_text(sweep, end)
    seeds = len(winner.records)
    over = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    caption = f"The {role(sweep)}'s accuracy after every epoch, {over}. {told}"
    alt = f"Accuracy of {called(sweep, winner)} by epoch and split on {' and '.join(sets)}. {told}"
    return Figure("epochs", "Accuracy along the epochs", caption, alt, tuple(panels))


def _along(name: str, setting: TrialRuns, on: Literal["val", "test"], column: int) -> Series:
    curve = [None if value is None else 100 * value for value in mean_curve(setting.records, on, column)]
    return Series(name, [float(epoch) for epoch in range(1, len(curve) + 1)], curve)


def smooth_factor(sweeps: Sequence[Sweep]) -> Figure | None:
    """Fig. 4: accuracy against smooth factor, one line an imbalance ratio where several sweeps are given."""
    series, panel_name = [], "method.smooth_factor"
    for style, sweep in enumerate(sweeps):
        own = [one for one in whole(sweep) if panel_name in one.trial.params]
        if len(own) < 2:
            continue
        name = _ratio(sweep) if len(sweeps) > 1 else "best trial of each range"
        x = [float(one.trial.params[panel_name]) for one in own]
        y = [100 * float(one.values[:, sweep.column].mean()) for one in own]
        series.append(Series(f"trials{f', {name}' if len(sweeps) > 1 else ''}", x, y, "points", style, faint=True))
        ranges = [one.space[panel_name] for one in sweep.spec.candidates() if panel_name in one.space]
        line = _envelope(own, x, y, exact=not any(isinstance(one, Uniform | LogUniform) for one in ranges))
        series.append(Series(name, [a for a, _ in line], [b for _, b in line], style=style))
    if not series:
        return None
    metric = sweeps[0].spec.selection.metric.removeprefix("acc_")
    return Figure(
        "smooth_factor",
        "Accuracy against smooth factor (Fig. 4)",
        "Points are trials, whose other values differ; the line goes through the best trial, by what is selected on, "
        "of each value or range of the smooth factor.",
        f"Test accuracy against smooth factor for {len(series) // 2} sweep(s). "
        + " ".join(f"{one.name}: {_trend(one)}" for one in series[1::2]),
        (Panel("smooth factor", f"test accuracy ({metric}), %", tuple(series)),),
    )


def lr_weight_decay(sweep: Sweep) -> Figure | None:
    """Fig. 5: learning rate x weight decay; a heat map of a grid, else one point a trial."""
    panels, told = [], dict[str, None]()
    lr, decay = "method.lr", "method.weight_decay"
    for candidate in candidates_shown(sweep):
        own = [one for one in whole(sweep, candidate.name) if {lr, decay} <= one.trial.params.keys()]
        if len(own) < 2:
            continue
        x, y = ([float(one.trial.params[path]) for one in own] for path in (lr, decay))
        value = [100 * (one.objective or 0.0) for one in own]
        grid = len(set(x)) * len(set(y)) <= len(own) * 1.01
        if grid:
            panels.append(_heat_map(candidate.name, x, y, value, objective_label(sweep)))
            told["A cell a pair of values, of the best trial that has them; stronger is better."] = None
            continue
        told["One point a trial, larger and stronger where better; the star is the best."] = None
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
                value_label=objective_label(sweep),
            )
        )
    if not panels:
        return None
    return Figure(
        "lr_weight_decay",
        "Learning rate and weight decay (Fig. 5)",
        f"{' '.join(told)} Other searched values, where there are any, differ.",
        f"{objective_label(sweep)} over learning rate and weight decay for {', '.join(p.title for p in panels)}.",
        tuple(panels),
    )


def candidates_shown(sweep: Sweep) -> list[Candidate]:
    """Candidates with something to search, the best first, as many as a figure has room for."""
    place = {one.trial.candidate: number for number, one in enumerate(sweep.methods)}
    found = [one for one in sweep.spec.candidates() if one.space]
    return sorted(found, key=lambda one: place.get(one.name, len(place)))[:6]


def _trials(name: str, settings: Sequence[TrialRuns], mark: Any = "points", style: int = 0) -> Series:
    x = [float(one.trial.number) for one in settings]
    return Series(name, x, [100 * (one.objective or 0.0) for one in settings], mark=mark, style=style)


def objective_label(sweep: Sweep) -> str:
    """What trials are judged by, as an axis names it."""
    return f"{sweep.spec.selection.on} {sweep.spec.selection.metric}, %"


def _ratio(sweep: Sweep) -> str:
    ratio = getattr(sweep.spec.dataset, "imbalance_ratio", None)
    if ratio is None and sweep.manifest is not None:
        smallest = max(1, min(sweep.manifest.class_counts))
        ratio = max(sweep.manifest.class_counts) / smallest
    return f"{sweep.spec.name}, IR {ratio:.3g}" if ratio else sweep.spec.name


def _envelope(
    settings: Sequence[TrialRuns], x: Sequence[float], y: Sequence[float], *, exact: bool
) -> list[tuple[float, float]]:
    """The best trial of each value, or of each of `BINS` ranges where any value could be tried."""
    low, high = min(x), max(x)
    exact = exact or len(set(x)) <= BINS
    bins: dict[float, list[int]] = {}
    for place, value in enumerate(x):
        key = value if exact else min(BINS - 1, math.floor(BINS * (value - low) / (high - low)))
        bins.setdefault(key, []).append(place)
    best = [max(places, key=lambda p: settings[p].objective or 0.0) for _, places in sorted(bins.items())]
    return sorted((x[place], y[place]) for place in best)


def _trend(line: Series) -> str:
    known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
    top = max(known, key=lambda point: point[1])
    return f"{known[0][1]:.2f} % at {known[0][0]:.3g}, best {top[1]:.2f} % at {top[0]:.3g}."


def _heat_map(title: str, x: Sequence[float], y: Sequence[float], value: Sequence[float], label: str) -> Panel:
    """Cells of a grid, best of those that share one, on evenly spaced axes."""
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
