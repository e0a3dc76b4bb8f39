"""The logits of two heads on the test images, as figures' data: the paper's Figures 1 and 2.

The stage-1 head, or another baseline, beside the winner, where both heads are kept. Knows sweeps as read and their
banks; nothing is drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lt_train.features.files import Manifest
from lt_train.metrics.accuracy import SPLITS, split_masks
from sweeps.analysis.labels import role
from sweeps.analysis.load import Sweep, class_order
from sweeps.analysis.logits import Scored, histograms, scored, telling_image
from sweeps.reporting.class_figures import MOST_CLASSES
from sweeps.reporting.model import Figure, Panel, Series

__all__ = ["TwoHeads", "logit_histograms", "missing_heads", "one_image", "two_heads"]


@dataclass(frozen=True)
class TwoHeads:
    """Two heads by the names that figures use, and what they make of the test images: the old one first."""

    names: tuple[str, str]
    manifest: Manifest
    scored: Scored


def two_heads(sweep: Sweep) -> TwoHeads | None:
    """The stage-1 head, or another baseline, and the winner, where their heads are kept."""
    winner = sweep.winner
    new = None if winner is None else sweep.classifier(winner)
    if winner is None or new is None or sweep.manifest is None or sweep.test is None:
        return None
    for name, one in sweep.sound_baselines.items():
        old = sweep.classifier(one)
        if old is not None and one.recipe != winner.recipe:
            method = winner.trial.called
            heads: list[nn.Module] = [old, new]
            names = (name, method if method != name else f"{name} ({role(sweep)})")
            return TwoHeads(names, sweep.manifest, scored(heads, sweep.test, sweep.manifest.num_classes))
    return None


def _rarest_split(manifest: Manifest) -> tuple[str, Tensor]:
    """The rarest split that has classes, by name, with its mask `[K]`."""
    masks = split_masks(torch.tensor(manifest.split_counts))
    return next((SPLITS[place], masks[place]) for place in (3, 2, 1) if masks[place].any())


def _commonest_split(manifest: Manifest) -> tuple[str, Tensor]:
    masks = split_masks(torch.tensor(manifest.split_counts))
    return next((SPLITS[place], masks[place]) for place in (1, 2, 3) if masks[place].any())


def one_image(heads: TwoHeads) -> Figure | None:
    """Fig. 1: the logits of one test image under two methods: one the winner rescues from the rarest split."""
    sizes = heads.manifest.class_counts
    split, rare = _rarest_split(heads.manifest)
    found = telling_image(heads.scored, rare)
    if found is None:
        split, found = "any", telling_image(heads.scored, torch.ones_like(rare))
    if found is None:
        return None
    order = class_order(sizes)
    groups = [group.tolist() for group in np.array_split(order, min(MOST_CLASSES, len(order)))]
    x = [float(place) for place in range(len(groups))]
    home = next(place for place, group in enumerate(groups) if found.label in group)
    panels, told = [], []
    for name, logits in zip(heads.names, (found.before, found.after), strict=True):
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
        f"Test image {found.index} of class {found.label} ({sizes[found.label]} in training): of those of "
        f"{split} classes that only {heads.names[1]} gets right, the one it gained most margin on.{_sampled(heads)}"
    )
    return Figure("one_image", "One image's logits (Fig. 1)", caption, f"{caption} {'; '.join(told)}.", tuple(panels))


def logit_histograms(heads: TwoHeads) -> Figure:
    """Fig. 2: true against other logits, the largest split against the rarest, under two methods."""
    groups = dict([_commonest_split(heads.manifest), _rarest_split(heads.manifest)])
    panels, told = [], []
    for name, logits in zip(heads.names, heads.scored.logits, strict=True):
        for split, found in zip(groups, histograms(logits, heads.scored.labels, list(groups.values())), strict=True):
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
        "A class's logit over its own test images and over all others, classes of a split together. The means lie "
        f"apart by: {'; '.join(told)}.{_sampled(heads)}",
        f"Distributions of logits; distance of the means: {'; '.join(told)}.",
        tuple(panels),
    )


def _sampled(heads: TwoHeads) -> str:
    seen, there = len(heads.scored.images), heads.scored.there
    return f" {seen} of {there} test images, drawn at random." if seen < there else ""


def missing_heads(sweep: Sweep) -> str:
    """Why there are no logits to draw, where there are no two heads."""
    if sweep.winner is None or sweep.test is None:
        return ""
    if not sweep.sound_baselines:
        return f"No baseline is there to draw the {role(sweep)}'s logits beside."
    if all(one.recipe == sweep.winner.recipe for one in sweep.sound_baselines.values()):
        return f"The {role(sweep)} is the baseline itself: there are no two heads whose logits could be told apart."
    return f"The heads of the {role(sweep)} or of the baselines are no longer kept, so no logits were drawn."
