"""Data of figures of classes and logits: Figures 1 to 3 of the paper, and accuracy against class size.

More classes than a figure can show are grouped, by descending size, into groups of equal numbers of classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lt_train.features.files import Manifest
from lt_train.metrics import SPLITS, loma_by_group, split_masks
from sweeps.analysis.labels import role
from sweeps.analysis.load import Sweep, TrialRuns, class_order
from sweeps.analysis.logits import HeadLogits, head_logits, histograms, rescued_image
from sweeps.config.plugin_groups import BASELINE_KINDS
from sweeps.reporting.model import Figure, Panel, Series
from sweeps.reporting.tables import over_seeds

MOST_LINES = 8
"""Most methods in one figure."""

MOST_CLASSES = 100
"""Most positions along an axis of classes; more classes are grouped."""

GROUPS = 10
"""Groups of classes in Fig. 3."""


def classes_shown(sweep: Sweep) -> dict[str, TrialRuns]:
    """The best trial of each method, the winner first, and the baselines, by display name."""
    shown: dict[str, TrialRuns] = {}
    for rank, one in enumerate(sweep.methods):
        shown[one.trial.display_name if rank else f"{one.trial.display_name} ({role(sweep)})"] = one
    recipes = [one.recipe for one in shown.values()]
    for name, one in sweep.finished_baselines.items():
        if one.recipe not in recipes:
            shown[name if name not in shown else f"{name} (baseline)"] = one
    return shown


def loma(sweep: Sweep, shown: dict[str, TrialRuns]) -> Figure | None:
    """Fig. 3: LoMa and regularised std by group of classes and method."""
    if sweep.manifest is None or not shown:
        return None
    counts = torch.tensor(sweep.manifest.class_counts)
    order = class_order(sweep.manifest.class_counts)
    groups = np.array_split(order, min(GROUPS, len(order)))
    names = [_group_name(sweep.manifest, group.tolist()) for group in groups]
    ticks = {float(group): name for group, name in enumerate(names)}
    x = [float(group) for group in range(len(groups))]
    left, right = [], []
    for style, (name, one) in enumerate(list(shown.items())[:MOST_LINES]):
        mean = torch.tensor([math.nan if v is None else v for v in over_seeds(one, "loma")])
        share = [None if math.isnan(v) else v for v in loma_by_group(mean, counts, GROUPS).tolist()]
        left.append(Series(name, x, share, style=style))
        spread = over_seeds(one, "regularised_std")
        right.append(Series(name, x, [_mean([spread[k] for k in group]) for group in groups], style=style))
    axis = "classes by descending size" if len(order) <= GROUPS else f"{len(groups)} groups of classes, largest first"
    shares = "; ".join(
        f"{one.name} from {one.y[0]:.3g} to {one.y[-1]:.3g}"
        for one in left
        if one.y[0] is not None and one.y[-1] is not None
    )
    return Figure(
        "loma",
        "LoMa and regularised std (Fig. 3)",
        "Left: Logits Magnitude (Eq. 6) divided by its sum over classes, mean per group; a horizontal line is "
        "balanced. Right: standard deviation divided by LoMa (Eq. 7), without classes whose LoMa is not positive. Mean "
        "over seeds, on test; best method first.",
        f"Line plots. Share of LoMa from the largest to the smallest classes: {shares}.",
        (
            Panel(axis, "LoMa / sum |LoMa|", tuple(left), x_ticks=ticks),
            Panel(axis, "regularised std", tuple(right), x_ticks=ticks, y_log=_wide(right)),
        ),
    )


def _wide(series: Sequence[Series]) -> bool:
    """Whether values span more than a decade, so that a linear axis would flatten most of them."""
    known = [value for one in series for value in one.y if value is not None]
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def class_accuracy(sweep: Sweep, shown: dict[str, TrialRuns]) -> Figure | None:
    """Accuracy of each class against its number of training images."""
    if sweep.manifest is None or not shown:
        return None
    sizes = sweep.manifest.class_counts
    groups = [group.tolist() for group in np.array_split(class_order(sizes), min(MOST_CLASSES, len(sizes)))]
    x = [float(max(1.0, np.mean([sizes[k] for k in group]))) for group in groups]
    chosen = [name for name in shown if name in list(shown)[:1] or name in BASELINE_KINDS][:3]
    series = []
    for style, name in enumerate(chosen):
        accuracy = over_seeds(shown[name], "class_accuracy")
        means = [_mean([accuracy[k] for k in group]) for group in groups]
        series.append(Series(name, x, [None if v is None else 100 * v for v in means], "points", style))
    point = (
        "class" if len(groups) == len(sizes) else f"group of about {len(sizes) // len(groups)} classes of similar size"
    )
    gained = _gained(shown, chosen)
    return Figure(
        "class_accuracy",
        "Accuracy against class size",
        f"One point per {point}, mean over seeds, on test. {gained}",
        f"Scatter plot of the test accuracy of {len(sizes)} classes with {min(sizes)} to {max(sizes)} training images. "
        f"{gained}",
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
    """How many classes gained and lost over the first baseline shown."""
    if len(chosen) < 2:
        return ""
    ours, theirs = (over_seeds(shown[name], "class_accuracy") for name in chosen[:2])
    gaps = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    up, down = sum(gap > 1e-9 for gap in gaps), sum(gap < -1e-9 for gap in gaps)
    same = len(gaps) - up - down
    return f"Against {chosen[1]}, {chosen[0]} is better on {up} classes, worse on {down} and equal on {same}."


def _group_name(manifest: Manifest, group: Sequence[int]) -> str:
    sizes = [manifest.class_counts[k] for k in group]
    return f"{max(sizes)}" if max(sizes) == min(sizes) else f"{max(sizes)}-{min(sizes)}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class TwoHeads:
    """Two heads with their display names and their logits on the test images, the baseline first."""

    names: tuple[str, str]
    manifest: Manifest
    test: HeadLogits


def two_heads(sweep: Sweep) -> TwoHeads | None:
    """The first baseline with a stored head, usually the stage-1 head, and the winner; None if one is missing."""
    winner = sweep.winner
    new = None if winner is None else sweep.classifier(winner)
    if winner is None or new is None or sweep.manifest is None or sweep.test is None:
        return None
    for name, one in sweep.finished_baselines.items():
        old = sweep.classifier(one)
        if old is not None and one.recipe != winner.recipe:
            method = winner.trial.display_name
            heads: list[nn.Module] = [old, new]
            names = (name, method if method != name else f"{name} ({role(sweep)})")
            return TwoHeads(names, sweep.manifest, head_logits(heads, sweep.test, sweep.manifest.num_classes))
    return None


def _first_split(manifest: Manifest, columns: Sequence[int]) -> tuple[str, Tensor]:
    """The first of these splits that has classes: its name and mask `[K]`."""
    masks = split_masks(torch.tensor(manifest.split_counts))
    return next((SPLITS[column], masks[column]) for column in columns if masks[column].any())


RAREST_FIRST, LARGEST_FIRST = (3, 2, 1), (1, 2, 3)


def one_image(heads: TwoHeads) -> Figure | None:
    """Fig. 1: logits of one test image under both heads: one of the rarest split that only the winner gets right."""
    sizes = heads.manifest.class_counts
    split, rare = _first_split(heads.manifest, RAREST_FIRST)
    found = rescued_image(heads.test, rare)
    if found is None:
        split, found = "all", rescued_image(heads.test, torch.ones_like(rare))
    if found is None:
        return None
    order = class_order(sizes)
    groups = [group.tolist() for group in np.array_split(order, min(MOST_CLASSES, len(order)))]
    x = [float(group) for group in range(len(groups))]
    home = next(position for position, group in enumerate(groups) if found.label in group)
    panels, texts = [], []
    for name, logits in zip(heads.names, (found.before, found.after), strict=True):
        values = logits.tolist()
        heights = [max(values[k] for k in group) for group in groups]
        guess = int(logits.argmax())
        peak = next(position for position, group in enumerate(groups) if guess in group)
        series = [Series("largest logit of the group" if len(groups) < len(order) else "logit", x, heights, "bars")]
        series.append(Series(f"true class {found.label}", [float(home)], [values[found.label]], "star", 1))
        if guess != found.label:
            series.append(Series(f"predicted class {guess}", [float(peak)], [values[guess]], "cross", 2))
        panels.append(Panel("classes by descending size", "logit", tuple(series), name))
        texts.append(
            f"{name} predicts class {guess} (logit {values[guess]:.2f}); the true class {found.label} has "
            f"{values[found.label]:.2f}"
        )
    caption = (
        f"Test image {found.index} of class {found.label} ({sizes[found.label]} training images). Among the images of "
        f"{split} classes that only {heads.names[1]} gets right, it has the largest gain in margin.{_sampled(heads)}"
    )
    alt = f"Bar charts of logits by class. {'; '.join(texts)}."
    return Figure("one_image", "Logits of one image (Fig. 1)", caption, alt, tuple(panels))


def logit_histograms(heads: TwoHeads) -> Figure:
    """Fig. 2: logits of true and other classes, for the largest and the rarest split, under both heads."""
    groups = dict(_first_split(heads.manifest, columns) for columns in (LARGEST_FIRST, RAREST_FIRST))
    panels, distances = [], []
    for name, logits in zip(heads.names, heads.test.logits, strict=True):
        for split, found in zip(groups, histograms(logits, heads.test.labels, list(groups.values())), strict=True):
            middle = ((found.edges[1:] + found.edges[:-1]) / 2).tolist()
            series = (
                Series(f"true class, mean {found.true_mean:.2f}", middle, found.true.tolist(), "steps", 0),
                Series(f"other classes, mean {found.other_mean:.2f}", middle, found.other.tolist(), "steps", 2),
            )
            panels.append(Panel("logit", "density", series, f"{name}, {split} classes"))
            distances.append(f"{name} on {split} classes {found.true_mean - found.other_mean:.2f}")
    return Figure(
        "logits",
        "Logits of true and other classes (Fig. 2)",
        "Logits of a class on its own test images and on all others, pooled over the classes of a split. Distance of "
        f"the means: {'; '.join(distances)}.{_sampled(heads)}",
        f"Histograms of logits. Distance of the means: {'; '.join(distances)}.",
        tuple(panels),
    )


def _sampled(heads: TwoHeads) -> str:
    used, total = len(heads.test.images), heads.test.total
    return f" A random sample of {used} of {total} test images." if used < total else ""


def missing_heads(sweep: Sweep) -> str:
    """Why there are no figures of logits."""
    if sweep.winner is None or sweep.test is None:
        return ""
    if not sweep.finished_baselines:
        return f"Figures of logits need a baseline beside the {role(sweep)}."
    if all(one.recipe == sweep.winner.recipe for one in sweep.finished_baselines.values()):
        return f"The {role(sweep)} is itself the baseline, so there are no figures of logits."
    return (
        f"The heads of the {role(sweep)} or of the baselines are no longer stored or cannot be read, so there are no "
        "figures of logits."
    )
