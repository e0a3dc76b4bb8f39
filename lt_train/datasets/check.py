"""The output of `lt-train data check`: an `Inspection` as JSON, as text with bars, and as a plot of class sizes.

Shapes: K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lt_train.core.imports import require, torch
from lt_train.core.io import atomic_file
from lt_train.datasets.base import Inspection
from lt_train.metrics import SPLITS, split_masks

__all__ = ["bars", "document", "lines", "plot"]

_ROWS = 20
"""Maximum number of bars; with more classes, classes of neighbouring rank share one."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def document(inspection: Inspection) -> dict[str, Any]:
    """The inspection as JSON; class counts are null if the labels are not class numbers."""
    counts = inspection.counts
    by_class = dict.fromkeys(("classes", "imbalance_ratio", "splits", "class_counts"))
    return {
        "parts": dict(inspection.parts),
        **(by_class if counts is None else _by_class(counts)),
        "class_names": list(inspection.classes) or None,
        "notes": list(inspection.notes),
        "wrong": [asdict(finding) for finding in inspection.findings],
    }


def _by_class(counts: torch.Tensor) -> dict[str, Any]:
    masks = split_masks(counts)
    return {
        "classes": len(counts),
        "imbalance_ratio": float(counts.max() / counts.min()) if counts.min() > 0 else None,
        "splits": {
            split: {"classes": int(mask.sum()), "images": int(counts[mask].sum())}
            for split, mask in zip(SPLITS, masks, strict=True)
        },
        "class_counts": counts.tolist(),
    }


def lines(document: dict[str, Any], width: int, *, plain: bool) -> list[str]:
    """The document as text: sizes of the parts, the splits, a bar for each class, and what is wrong."""
    shown = [", ".join(f"{name} {count}" for name, count in document["parts"].items())]
    counts = document["class_counts"]
    if counts:
        ratio = document["imbalance_ratio"]
        shown.append(
            f"{len(counts)} classes, {sum(counts)} training images before any hold-out, largest {max(counts)}, "
            f"smallest {min(counts)}, imbalance ratio {'-' if ratio is None else f'{ratio:.4g}'}"
        )
        splits = [(name, split) for name, split in document["splits"].items() if name != "all"]
        shown.append(
            "classes (and their training images): "
            + ", ".join(f"{name} {split['classes']} ({split['images']})" for name, split in splits)
        )
        shown += ["", *bars(counts, document["class_names"] or [], width, plain=plain)]
    if document["wrong"]:
        shown += ["", "wrong:"]
    for wrong in document["wrong"]:
        shown.append(f"- {wrong['what']}" + (f": {wrong['count']}" if wrong["names"] else ""))
        shown += [f"    {name}" for name in wrong["names"]]
        if wrong["names"] and wrong["count"] > len(wrong["names"]):
            shown.append(f"    and {wrong['count'] - len(wrong['names'])} more")
    return [*shown, *([] if document["wrong"] else ["", "no problems found"])]


def bars(counts: Sequence[int], classes: Sequence[str], width: int, *, plain: bool) -> list[str]:
    """One bar per class, or per group of classes of neighbouring rank, largest first; its length is the mean count.

    Args:
        counts: training images per class.
        classes: names of the classes; empty shows their numbers.
        width: maximum number of characters per line.
        plain: use ASCII only.
    """
    order = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
    edges = [len(order) * row // min(_ROWS, len(order)) for row in range(min(_ROWS, len(order)) + 1)]
    groups = [order[start:stop] for start, stop in itertools.pairwise(edges)]
    if len(order) <= _ROWS:
        labels = [classes[k] if classes else f"class {k}" for k in order]
    else:
        labels = [f"rank {start + 1}-{stop}" for start, stop in itertools.pairwise(edges)]
    labels = [label if len(label) <= 24 else label[:21] + "..." for label in labels]
    means = [sum(counts[k] for k in group) / len(group) for group in groups]
    numbers = [f"{mean:.0f}" if mean >= 100 or mean == int(mean) else f"{mean:.1f}" for mean in means]
    margin, digits = max(map(len, labels)), max(map(len, numbers))
    bar_width = max(width - margin - digits - 3, 10)
    longest = max(*means, 1)
    return [
        f"{label:<{margin}}  {number:>{digits}} {_bar(mean / longest * bar_width, plain)}".rstrip()
        for label, number, mean in zip(labels, numbers, means, strict=True)
    ]


def _bar(length: float, plain: bool) -> str:
    if plain:
        return "#" * round(length) or ("." if length else "")
    eighths = max(round(length * 8), 1) if length else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def plot(counts: Sequence[int], file: Path) -> None:
    """Draw the class sizes as a PNG, largest first, with one shade per split.

    Raises:
        StorageError: the file cannot be written.
        UserError: matplotlib is not installed.
    """
    require("matplotlib")
    # Imported here because matplotlib takes a second to import and most checks draw nothing.
    from matplotlib.figure import Figure

    ordered = sorted(counts, reverse=True)
    masks = split_masks(torch.tensor(ordered))
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for split, mask, grey in zip(SPLITS[1:], masks[1:], ("0.25", "0.55", "0.8"), strict=True):
        places = torch.nonzero(mask).flatten().tolist()
        if places:
            axes.bar(
                places, [ordered[k] for k in places], width=1.0, color=grey, label=f"{split}: {len(places)} classes"
            )
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)  # makes a class of one image visible
    axes.set_xlabel("classes by size")
    axes.set_ylabel("training images")
    axes.legend(frameon=False)
    with atomic_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
