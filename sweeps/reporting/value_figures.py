"""Which values of what was searched matter, as figures' data: parallel coordinates, importance, slices, flatness. Pure.

Of each method whose search has something to tell, separately. Nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sweeps.analysis.labels import role, short_params
from sweeps.analysis.load import Sweep
from sweeps.config.methods import Candidate
from sweeps.reporting.model import Column, Figure, Line, Panel, Series, Table
from sweeps.reporting.search_figures import candidates_shown, objective_label, whole
from sweeps.search.base import LogUniform
from sweeps.search.importance import FEWEST_TRIALS, importances

__all__ = ["importance", "near_best", "parallel", "slices"]

MOST_LINES = 200
"""Lines of parallel coordinates that can still be told apart, and lie in a page of a few megabytes."""

NEAR = 0.005
"""Trials within half a point of the best are near it."""


def parallel(sweep: Sweep) -> Figure | None:
    """Parallel coordinates: an axis a searched parameter, and the objective; the best tenth stands out."""
    panels, rows = [], []
    for candidate in candidates_shown(sweep):
        own = sorted(whole(sweep, candidate.name), key=lambda one: one.objective or 0.0)
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
                "best tenth" if place >= len(own) - top else "other trials",
                [float(axis) for axis in range(len(axes))],
                [axis[place] for axis in axes],
                style=1 if place >= len(own) - top else 0,
                faint=place < len(own) - top,
            )
            for place in sorted(thinned)
        ]
        named = {float(place): short for place, short in enumerate([*map(_short, paths), objective_label(sweep)])}
        panels.append(Panel("", "low to high", tuple(series), candidate.name, x_ticks=named))
        rows += [(candidate.name, one.trial.number, short_params(one.trial.params), one.objective) for one in own]
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
        axis=1,
        data=data,
    )


def importance(sweep: Sweep) -> Figure | None:
    """How much of the objective's spread each parameter explains."""
    panels = []
    for candidate in candidates_shown(sweep):
        known = [(one.trial.params, one.objective or 0.0) for one in whole(sweep, candidate.name)]
        shares = importances(candidate.space, known)
        if len(shares) < 2:
            continue
        x = [float(place) for place in range(len(shares))]
        named = {float(place): _short(path) for place, path in enumerate(shares)}
        bars = Series("importance", x, list(shares.values()), mark="bars")
        panels.append(Panel("", "share of the spread", (bars,), candidate.name, x_ticks=named))
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
    candidate = next(one for one in sweep.spec.candidates() if one.name == winner.trial.candidate)
    own = whole(sweep, candidate.name)
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
        panels.append(Panel(_short(path), objective_label(sweep), series, lines=(band,), x_log=log, x_ticks=ticks))
    if not panels:
        return None
    return Figure(
        "slices",
        f"Around the {role(sweep)} ({candidate.name})",
        "The objective against each searched value; points between the star and the dashed line are as good as half a "
        "point. The table says how wide those lie.",
        f"Objective against each of {len(panels)} searched values of {candidate.name}.",
        tuple(panels),
        axis=3,
    )


def near_best(sweep: Sweep) -> Table | None:
    """How far each value may be moved at no loss: its range among the trials near the best."""
    winner = sweep.winner
    if winner is None:
        return None
    own = whole(sweep, winner.trial.candidate)
    if len(own) < 2 or not winner.trial.params:
        return None
    best = max(one.objective or 0.0 for one in own)
    near = [one for one in own if (one.objective or 0.0) >= best - NEAR]
    rows: list[tuple[Any, ...]] = []
    for path, value in winner.trial.params.items():
        tried, good = ([one.trial.params[path] for one in some] for some in (own, near))
        rows.append((path, _told([value]), _told(good), _told(tried)))
    columns = tuple(map(Column, ("value", role(sweep), f"{len(near)} near the best", f"all {len(own)} trials")))
    note = f"Near the best: within {100 * NEAR:g} points of it in what is selected on. A wide range is a flat optimum."
    return Table("sensitivity", f"Sensitivity around the {role(sweep)}", columns, tuple(rows), note)


def _axis(candidate: Candidate, path: str, values: Sequence[Any]) -> list[float]:
    numbers, _ = _numbers(values)
    return _scaled([math.log(v) for v in numbers] if isinstance(candidate.space[path], LogUniform) else numbers)


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
