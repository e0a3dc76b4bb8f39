"""What a search looked like, as figures' data: history, epochs, smooth factor, lr x weight decay, parameters. Pure.

Figures are of one method, or of several, whose searches are separate. Nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lt_train.metrics import SPLITS
from sweeps.cards import short_params
from sweeps.contestants import Contestant
from sweeps.report.compare import judged, mean_curve
from sweeps.report.content import Column, Figure, Line, Panel, Series, Table
from sweeps.report.reading import Setting, Sweep
from sweeps.report.verdict import called, ending_of, ending_text
from sweeps.search.base import LogUniform
from sweeps.search.importance import FEWEST_TRIALS, importances

__all__ = ["epochs", "history", "importance", "lr_weight_decay", "near_best", "parallel", "slices", "smooth_factor"]

MOST_LINES = 200
"""Lines of parallel coordinates that can still be told apart, and lie in a page of a few megabytes."""

NEAR = 0.005
"""Trials within half a point of the best are near it."""

BINS = 8
"""Of a continuous range, where a line is drawn through its trials."""


def whole(sweep: Sweep, method: str | None = None) -> list[Setting]:
    """Trials of the search that have a value and ran to the end, of one contestant or of all."""
    return [
        one
        for one in sweep.searched
        if one.objective is not None and one.stopped is None and method in (None, one.trial.contestant)
    ]


def history(sweep: Sweep) -> Figure | None:
    """The objective by trial, the best so far, and what failed or was stopped."""
    panels = []
    for contestant in _searched(sweep):
        own = [one for one in sweep.searched if one.trial.contestant == contestant.name]
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
        panels.append(Panel("trial", _objective(sweep), tuple(series), title=contestant.name))
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
    """Accuracy after every epoch of the winner, beside where the stage-1 head stands."""
    winner, chosen = sweep.winner, sweep.spec.selection
    if winner is None or not winner.trial.method.trains:
        return None
    panels = []
    sets: list[Literal["val", "test"]] = ["val", "test"] if winner.records[0].val else ["test"]
    for on in sets:
        series, lines = [], []
        for style, split in enumerate(SPLITS):
            curve = [None if v is None else 100 * v for v in mean_curve(winner.records, on, style)]
            if any(value is not None for value in curve):
                x = [float(epoch) for epoch in range(1, len(curve) + 1)]
                series.append(Series(split, x, curve, style=style, faint=style != sweep.column))
        vanilla = sweep.sound_baselines.get("vanilla")
        if vanilla is not None and (on == "test" or vanilla.records[0].val):
            start = judged(vanilla.records, on, sweep.column).mean()
            lines.append(Line(f"stage-1 head, {SPLITS[sweep.column]}", y=100 * float(start), style=5))
        panels.append(Panel("epoch", f"{on} accuracy, %", tuple(series), f"on {on}", tuple(lines)))
    end = ending_of(sweep, winner)
    told = "" if end is None else ending_text(end, chosen.epoch)
    caption = (
        f"The winner's accuracy after every epoch, mean over {len(winner.records)} seeds. {told} A run three times as "
        "long would say where it leads; this sweep holds none, and a report trains nothing."
    )
    alt = f"Accuracy of {called(sweep, winner)} by epoch and split on {' and '.join(sets)}. {told}"
    return Figure("epochs", "Accuracy along the epochs", caption, alt, tuple(panels))


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
        line = _envelope(own, x, y)
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
    panels = []
    lr, decay = "method.lr", "method.weight_decay"
    for contestant in _searched(sweep):
        own = [one for one in whole(sweep, contestant.name) if {lr, decay} <= one.trial.params.keys()]
        if len(own) < 2:
            continue
        x, y = ([float(one.trial.params[path]) for one in own] for path in (lr, decay))
        value = [100 * (one.objective or 0.0) for one in own]
        grid = len(set(x)) * len(set(y)) <= len(own) * 1.01
        if grid:
            panels.append(_heat_map(contestant.name, x, y, value, _objective(sweep)))
            continue
        points = Series("trials", x, y, mark="points", value=value)
        top = int(np.argmax(value))
        star = Series("best", [x[top]], [y[top]], mark="star", style=1)
        log = [isinstance(contestant.space[path], LogUniform) for path in (lr, decay)]
        panels.append(
            Panel(
                "learning rate",
                "weight decay",
                (points, star),
                contestant.name,
                x_log=log[0],
                y_log=log[1],
                value_label=_objective(sweep),
            )
        )
    if not panels:
        return None
    return Figure(
        "lr_weight_decay",
        "Learning rate and weight decay (Fig. 5)",
        "One point a trial, larger and darker where better; the star is the best. Other searched values differ.",
        f"{_objective(sweep)} over learning rate and weight decay for {', '.join(p.title for p in panels)}.",
        tuple(panels),
    )


def parallel(sweep: Sweep) -> Figure | None:
    """Parallel coordinates: an axis a searched parameter, and the objective; the best tenth stands out."""
    panels, rows = [], []
    for contestant in _searched(sweep):
        own = sorted(whole(sweep, contestant.name), key=lambda one: one.objective or 0.0)
        paths = list(contestant.space)
        if len(own) < 2 or not paths:
            continue
        axes = [_axis(contestant, path, [one.trial.params[path] for one in own]) for path in paths]
        axes.append(_scaled([one.objective or 0.0 for one in own]))
        top = max(1, round(len(own) / 10))
        thinned = {
            *range(len(own) - top, len(own)),
            *np.linspace(0, len(own) - 1, MOST_LINES - top).astype(int).tolist(),
        }
        series = [
            Series(
                "best tenth" if place >= len(own) - top else "other trials",
                [float(axis) for axis in range(len(axes))],
                [axis[place] for axis in axes],
                style=1 if place >= len(own) - top else 0,
                faint=place < len(own) - top,
            )
            for place in sorted(thinned)
        ]
        named = {float(place): short for place, short in enumerate([*map(_short, paths), _objective(sweep)])}
        panels.append(Panel("", "low to high", tuple(series), contestant.name, x_ticks=named))
        rows += [(contestant.name, one.trial.number, short_params(one.trial.params), one.objective) for one in own]
    if not panels:
        return None
    data = Table(
        "parallel", "Parallel coordinates", tuple(map(Column, ("method", "trial", "values", "objective"))), tuple(rows)
    )
    return Figure(
        "parallel",
        "Parallel coordinates",
        "A line a trial through its values, each axis from the least to the greatest value tried (logarithmic where "
        f"searched so); the best tenth is drawn strong. At most {MOST_LINES} lines; runs.csv has all.",
        f"Lines of {len(rows)} trials through their searched values; the best tenth stands out.",
        tuple(panels),
        across=1,
        data=data,
    )


def importance(sweep: Sweep) -> Figure | None:
    """How much of the objective's spread each parameter explains."""
    panels = []
    for contestant in _searched(sweep):
        known = [(one.trial.params, one.objective or 0.0) for one in whole(sweep, contestant.name)]
        shares = importances(contestant.space, known)
        if len(shares) < 2:
            continue
        x = [float(place) for place in range(len(shares))]
        named = {float(place): _short(path) for place, path in enumerate(shares)}
        bars = Series("importance", x, list(shares.values()), mark="bars")
        panels.append(Panel("", "share of the spread", (bars,), contestant.name, x_ticks=named))
    if not panels:
        return None
    told = "; ".join(
        f"{panel.title}: " + ", ".join(f"{(panel.x_ticks or {})[x]} {y:.2f}" for x, y in zip(one.x, one.y, strict=True))
        for panel in panels
        for one in panel.series
    )
    return Figure(
        "importance",
        "Parameter importance",
        "Optuna's fANOVA: the share of the spread of the objective over the searched ranges that a parameter explains "
        f"alone. Of searches with at least {FEWEST_TRIALS} whole trials; it says nothing of untried values.",
        f"Importance of searched parameters. {told}",
        tuple(panels),
    )


def slices(sweep: Sweep) -> Figure | None:
    """The objective against each searched parameter, with the winner: how sharp the optimum is."""
    winner = sweep.winner
    if winner is None:
        return None
    contestant = next(one for one in sweep.spec.contestants() if one.name == winner.trial.contestant)
    own = whole(sweep, contestant.name)
    panels = []
    for path, dimension in contestant.space.items():
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
        panels.append(Panel(_short(path), _objective(sweep), series, lines=(band,), x_log=log, x_ticks=ticks))
    if not panels:
        return None
    return Figure(
        "slices",
        f"Around the winner ({contestant.name})",
        "The objective against each searched value; points between the star and the dashed line are as good as half a "
        "point. The table says how wide those lie.",
        f"Objective against each of {len(panels)} searched values of {contestant.name}.",
        tuple(panels),
        across=3,
    )


def near_best(sweep: Sweep) -> Table | None:
    """How far each value may be moved at no loss: its range among the trials near the best."""
    winner = sweep.winner
    if winner is None:
        return None
    own = whole(sweep, winner.trial.contestant)
    if len(own) < 2 or not winner.trial.params:
        return None
    best = max(one.objective or 0.0 for one in own)
    near = [one for one in own if (one.objective or 0.0) >= best - NEAR]
    rows: list[tuple[Any, ...]] = []
    for path, value in winner.trial.params.items():
        tried, good = ([one.trial.params[path] for one in some] for some in (own, near))
        rows.append((path, _told([value]), _told(good), _told(tried)))
    columns = tuple(map(Column, ("value", "winner", f"{len(near)} trials near the best", f"{len(own)} trials")))
    note = f"Near the best: within {100 * NEAR:g} points of it in what is selected on. A wide range is a flat optimum."
    return Table("sensitivity", "Sensitivity around the winner", columns, tuple(rows), note)


def _searched(sweep: Sweep) -> list[Contestant]:
    """Contestants with something to search, the best first, as many as a figure has room for."""
    place = {one.trial.contestant: number for number, one in enumerate(sweep.methods)}
    found = [one for one in sweep.spec.contestants() if one.space]
    return sorted(found, key=lambda one: place.get(one.name, len(place)))[:6]


def _trials(name: str, settings: Sequence[Setting], mark: Any = "points", style: int = 0) -> Series:
    x = [float(one.trial.number) for one in settings]
    return Series(name, x, [100 * (one.objective or 0.0) for one in settings], mark=mark, style=style)


def _objective(sweep: Sweep) -> str:
    return f"{sweep.spec.selection.on} {sweep.spec.selection.metric}, %"


def _ratio(sweep: Sweep) -> str:
    ratio = getattr(sweep.spec.dataset, "imbalance_ratio", None)
    if ratio is None and sweep.manifest is not None:
        smallest = max(1, min(sweep.manifest.class_counts))
        ratio = max(sweep.manifest.class_counts) / smallest
    return f"{sweep.spec.name}, IR {ratio:.3g}" if ratio else sweep.spec.name


def _envelope(settings: Sequence[Setting], x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """The best trial of each value, or of each of `BINS` ranges where there are more values than that."""
    low, high = min(x), max(x)
    exact = len(set(x)) <= BINS
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


def _axis(contestant: Contestant, path: str, values: Sequence[Any]) -> list[float]:
    numbers, _ = _numbers(values)
    return _scaled([math.log(v) for v in numbers] if isinstance(contestant.space[path], LogUniform) else numbers)


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [0.5 if high == low else (value - low) / (high - low) for value in values]


def _numbers(values: Sequence[Any]) -> tuple[list[float], Mapping[float, str] | None]:
    """Values as places on an axis; words get places of their own, with their names."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], None
    words = sorted({str(value) for value in values})
    return [float(words.index(str(value))) for value in values], {float(i): word for i, word in enumerate(words)}


def _told(values: Sequence[Any]) -> str:
    """`0.31 to 0.97`, or the words that occur."""
    numbers, words = _numbers(values)
    if words is not None:
        return ", ".join(sorted({str(value) for value in values}))
    low, high = min(numbers), max(numbers)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _short(path: str) -> str:
    return path.removeprefix("method.").removeprefix("training.")
