"""What a sweep did to the classes, as figures' data: the paper's Figure 3, and accuracy by class size.

Where there are more classes than a figure has room for, they are taken together in groups of equal number by
descending size. Knows sweeps as read and their banks; nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lt_train.features.files import Manifest
from lt_train.metrics.accuracy import loma_by_group
from sweeps.analysis.labels import role
from sweeps.analysis.load import Sweep, TrialRuns, class_order
from sweeps.reporting.model import Figure, Panel, Series
from sweeps.reporting.tables import over_seeds

__all__ = ["MOST_CLASSES", "class_accuracy", "classes_shown", "loma"]

MOST_LINES = 8
"""Methods that a figure can hold and still be read."""

MOST_CLASSES = 100
"""Places along an axis of classes; more are grouped."""

GROUPS = 10
"""Of Fig. 3."""


def classes_shown(sweep: Sweep) -> dict[str, TrialRuns]:
    """Baselines and every method's best, the winner first, by the name that figures use."""
    shown: dict[str, TrialRuns] = {}
    for place, one in enumerate(sweep.methods):
        shown[one.trial.called if place else f"{one.trial.called} ({role(sweep)})"] = one
    recipes = [one.recipe for one in shown.values()]
    for name, one in sweep.sound_baselines.items():
        if one.recipe not in recipes:
            shown[name if name not in shown else f"{name} (baseline)"] = one
    return shown


def loma(sweep: Sweep, shown: dict[str, TrialRuns]) -> Figure | None:
    """Fig. 3: LoMa by class group per method, and regularised std."""
    if sweep.manifest is None or not shown:
        return None
    counts = torch.tensor(sweep.manifest.class_counts)
    order = class_order(sweep.manifest.class_counts)
    groups = np.array_split(order, min(GROUPS, len(order)))
    names = [_group_name(sweep.manifest, group.tolist()) for group in groups]
    ticks = {float(place): name for place, name in enumerate(names)}
    x = [float(place) for place in range(len(groups))]
    left, right = [], []
    for style, (name, one) in enumerate(list(shown.items())[:MOST_LINES]):
        mean = torch.tensor([math.nan if v is None else v for v in over_seeds(one, "loma")])
        share = [None if math.isnan(v) else v for v in loma_by_group(mean, counts, GROUPS).tolist()]
        left.append(Series(name, x, share, style=style))
        spread = over_seeds(one, "regularised_std")
        right.append(Series(name, x, [_mean([spread[k] for k in group]) for group in groups], style=style))
    place = "classes by descending size" if len(order) <= GROUPS else f"{len(groups)} groups of classes, largest first"
    told = "; ".join(
        f"{one.name} from {one.y[0]:.3g} to {one.y[-1]:.3g}"
        for one in left
        if one.y[0] is not None and one.y[-1] is not None
    )
    return Figure(
        "loma",
        "LoMa and regularised std (Fig. 3)",
        "Left: Logits Magnitude (Eq. 6) over its sum, mean of a group of classes; level is balanced. Right: std over "
        "LoMa (Eq. 7); classes whose LoMa is not positive are left out. Means over seeds, on test; best method first.",
        f"LoMa share by class group: {told}.",
        (
            Panel(place, "LoMa / sum |LoMa|", tuple(left), x_ticks=ticks),
            Panel(place, "regularised std", tuple(right), x_ticks=ticks, y_log=_wide(right)),
        ),
    )


def _wide(series: Sequence[Series]) -> bool:
    """Whether values lie so far apart that one of them would flatten all others."""
    known = [value for one in series for value in one.y if value is not None]
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def class_accuracy(sweep: Sweep, shown: dict[str, TrialRuns]) -> Figure | None:
    """Accuracy by class against class size."""
    if sweep.manifest is None or not shown:
        return None
    sizes = sweep.manifest.class_counts
    groups = [group.tolist() for group in np.array_split(class_order(sizes), min(MOST_CLASSES, len(sizes)))]
    x = [float(max(1.0, np.mean([sizes[k] for k in group]))) for group in groups]
    chosen = [name for name in shown if name in list(shown)[:1] or name in ("vanilla", "ce")][:3]
    series = []
    for style, name in enumerate(chosen):
        accuracy = over_seeds(shown[name], "class_accuracy")
        means = [_mean([accuracy[k] for k in group]) for group in groups]
        series.append(Series(name, x, [None if v is None else 100 * v for v in means], "points", style))
    point = "class" if len(groups) == len(sizes) else f"group of {len(sizes) // len(groups)} or so classes of like size"
    gained = _gained(shown, chosen)
    return Figure(
        "class_accuracy",
        "Accuracy against class size",
        f"One point a {point}, mean over seeds, on test. {gained}",
        f"Test accuracy of {len(sizes)} classes of {min(sizes)} to {max(sizes)} images. {gained}",
        (
            Panel(
                "training images of the class",
                "accuracy, %",
                tuple(series),
                x_log=max(sizes) > 10 * max(1, min(sizes)),
            ),
        ),
    )


def _gained(shown: dict[str, TrialRuns], chosen: Sequence[str]) -> str:
    """How many classes gained and lost over the first other one shown."""
    if len(chosen) < 2:
        return ""
    ours, theirs = (over_seeds(shown[name], "class_accuracy") for name in chosen[:2])
    gaps = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    up, down = sum(gap > 1e-9 for gap in gaps), sum(gap < -1e-9 for gap in gaps)
    level = len(gaps) - up - down
    return f"Over {chosen[1]}, {chosen[0]} gained on {up} classes, lost on {down}, and is level on {level}."


def _group_name(manifest: Manifest, group: Sequence[int]) -> str:
    sizes = [manifest.class_counts[k] for k in group]
    return f"{max(sizes)}" if max(sizes) == min(sizes) else f"{max(sizes)}-{min(sizes)}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
