"""What a sweep did to the classes, as figures' data: the paper's Figures 1 to 3, and accuracy by class size.

Where there are more classes than a figure has room for, they are taken together in groups of equal number by
descending size. Knows sweeps as read and their banks; nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lt_train.features.bank_files import Manifest
from lt_train.metrics import SPLITS, loma_by_group, split_masks
from sweeps.reporting.content import Figure, Panel, Series
from sweeps.reporting.logits import histograms, telling_picture
from sweeps.reporting.reading import Setting, Sweep, class_order
from sweeps.reporting.tables import over_seeds
from sweeps.reporting.verdict import role

__all__ = [
    "class_accuracy",
    "classes_shown",
    "fewest_split",
    "logit_histograms",
    "loma",
    "missing_heads",
    "one_picture",
]

MOST_LINES = 8
"""Methods that a figure can hold and still be read."""

MOST_CLASSES = 100
"""Places along an axis of classes; more are grouped."""

GROUPS = 10
"""Of Fig. 3."""


def classes_shown(sweep: Sweep) -> dict[str, Setting]:
    """Baselines and every method's best, the winner first, by the name that figures use."""
    shown: dict[str, Setting] = {}
    for place, one in enumerate(sweep.methods):
        shown[one.trial.called if place else f"{one.trial.called} ({role(sweep)})"] = one
    recipes = [one.recipe for one in shown.values()]
    for name, one in sweep.sound_baselines.items():
        if one.recipe not in recipes:
            shown[name if name not in shown else f"{name} (baseline)"] = one
    return shown


def fewest_split(manifest: Manifest) -> tuple[str, Tensor]:
    """The rarest split that has classes, by name, with its mask `[K]`."""
    masks = split_masks(torch.tensor(manifest.split_counts))
    return next((SPLITS[place], masks[place]) for place in (3, 2, 1) if masks[place].any())


def _commonest_split(manifest: Manifest) -> tuple[str, Tensor]:
    masks = split_masks(torch.tensor(manifest.split_counts))
    return next((SPLITS[place], masks[place]) for place in (1, 2, 3) if masks[place].any())


def loma(sweep: Sweep, shown: dict[str, Setting]) -> Figure | None:
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
        "LoMa (Eq. 7); classes whose LoMa is not positive are left out. Means over seeds, on test.",
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


def class_accuracy(sweep: Sweep, shown: dict[str, Setting]) -> Figure | None:
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
    grouped = f" Each point is the mean of {len(sizes) // len(groups)} or so classes of like size."
    gained = _gained(shown, chosen)
    return Figure(
        "class_accuracy",
        "Accuracy against class size",
        f"One point a class, mean over seeds, on test.{grouped * (len(groups) < len(sizes))} {gained}",
        f"Test accuracy of {len(sizes)} classes of {min(sizes)} to {max(sizes)} pictures. {gained}",
        (
            Panel(
                "training pictures of the class",
                "accuracy, %",
                tuple(series),
                x_log=max(sizes) > 10 * max(1, min(sizes)),
            ),
        ),
    )


def _gained(shown: dict[str, Setting], chosen: Sequence[str]) -> str:
    """How many classes gained and lost over the first other one shown."""
    if len(chosen) < 2:
        return ""
    ours, theirs = (over_seeds(shown[name], "class_accuracy") for name in chosen[:2])
    gaps = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    up, down = sum(gap > 1e-9 for gap in gaps), sum(gap < -1e-9 for gap in gaps)
    level = len(gaps) - up - down
    return f"Over {chosen[1]}, {chosen[0]} gained on {up} classes, lost on {down}, and is level on {level}."


def one_picture(sweep: Sweep) -> Figure | None:
    """Fig. 1: the logits of one test picture under two methods: one the winner rescues from the rarest split."""
    pair = _two_classifiers(sweep)
    if pair is None or sweep.manifest is None or sweep.test is None:
        return None
    (old_name, old), (new_name, new) = pair
    split, rare = fewest_split(sweep.manifest)
    found = telling_picture(old, new, sweep.test, rare)
    if found is None:
        split, found = "any", telling_picture(old, new, sweep.test, torch.ones_like(rare))
    if found is None:
        return None
    order = class_order(sweep.manifest.class_counts)
    groups = [group.tolist() for group in np.array_split(order, min(MOST_CLASSES, len(order)))]
    x = [float(place) for place in range(len(groups))]
    home = next(place for place, group in enumerate(groups) if found.label in group)
    panels, told = [], []
    for name, logits in ((old_name, found.before), (new_name, found.after)):
        values = logits.tolist()
        heights = [max(values[k] for k in group) for group in groups]
        guess = int(logits.argmax())
        peak = next(place for place, group in enumerate(groups) if guess in group)
        series = [Series("largest logit of the group" if len(groups) < len(order) else "logit", x, heights, "bars")]
        series.append(Series(f"true class {found.label}", [float(home)], [values[found.label]], "star", 1))
        if guess != found.label:
            series.append(Series(f"predicted class {guess}", [float(peak)], [values[guess]], "cross", 2))
        panels.append(Panel("classes by descending size", "logit", tuple(series), name))
        told.append(
            f"{name}: class {guess} at {values[guess]:.2f}, the true class {found.label} at {values[found.label]:.2f}"
        )
    caption = (
        f"Test picture {found.index} of class {found.label} ({sweep.manifest.class_counts[found.label]} training "
        f"pictures): of those of {split} classes that only {new_name} gets right, the one it gained most margin on."
    )
    return Figure(
        "one_picture", "One picture's logits (Fig. 1)", caption, f"{caption} {'; '.join(told)}.", tuple(panels)
    )


def logit_histograms(sweep: Sweep) -> Figure | None:
    """Fig. 2: true against other logits, the largest split against the rarest, under two methods."""
    pair = _two_classifiers(sweep)
    if pair is None or sweep.manifest is None or sweep.test is None:
        return None
    groups = dict([_commonest_split(sweep.manifest), fewest_split(sweep.manifest)])
    panels, told = [], []
    for name, classifier in pair:
        for split, found in zip(groups, histograms(classifier, sweep.test, list(groups.values())), strict=True):
            middle = ((found.edges[1:] + found.edges[:-1]) / 2).tolist()
            series = (
                Series(f"true class, mean {found.true_mean:.2f}", middle, found.true.tolist(), "steps", 0),
                Series(f"other classes, mean {found.other_mean:.2f}", middle, found.other.tolist(), "steps", 2),
            )
            panels.append(Panel("logit", "density", series, f"{name}, {split} classes"))
            told.append(f"{name} on {split} classes {found.true_mean - found.other_mean:.2f}")
    return Figure(
        "logits",
        "True and other logits (Fig. 2)",
        "A class's logit over its own test pictures and over all others, classes of a split together. The means lie "
        f"apart by: {'; '.join(told)}.",
        f"Distributions of logits; distance of the means: {'; '.join(told)}.",
        tuple(panels),
    )


def _two_classifiers(sweep: Sweep) -> tuple[tuple[str, torch.nn.Module], tuple[str, torch.nn.Module]] | None:
    """The stage-1 head, or another baseline, and the winner, where their heads are kept."""
    winner = sweep.winner
    new = None if winner is None else sweep.classifier(winner)
    if winner is None or new is None:
        return None
    for name, one in sweep.sound_baselines.items():
        old = sweep.classifier(one)
        if old is not None and one.recipe != winner.recipe:
            return (name, old), (winner.trial.called if winner.trial.called != name else f"{name} ({role(sweep)})", new)
    return None


def missing_heads(sweep: Sweep) -> str:
    """Why there are no logits to draw; empty where there are."""
    if sweep.winner is None or sweep.test is None or _two_classifiers(sweep) is not None:
        return ""
    if not sweep.sound_baselines:
        return f"No baseline is there to draw the {role(sweep)}'s logits beside."
    if all(one.recipe == sweep.winner.recipe for one in sweep.sound_baselines.values()):
        return f"The {role(sweep)} is the baseline itself: there are no two heads whose logits could be told apart."
    return f"The heads of the {role(sweep)} or of the baselines are no longer kept, so no logits were drawn."


def _group_name(manifest: Manifest, group: Sequence[int]) -> str:
    sizes = [manifest.class_counts[k] for k in group]
    return f"{max(sizes)}" if max(sizes) == min(sizes) else f"{max(sizes)}-{min(sizes)}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
