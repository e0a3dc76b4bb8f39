"""What a dataset holds and what is wrong with it, before anything is trained: numbers, an image of the tail, findings.

`lt-train data check` prints what is made here. Touch this to say more of a dataset; looking at it is the dataset's own
`inspect`. Shapes: K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lt_train.core.io import atomic_file
from lt_train.datasets.base import Inspection
from lt_train.metrics.accuracy import SPLITS, split_masks

__all__ = ["bars", "document", "lines", "plot"]

_ROWS = 20
"""Bars at most; of more classes, several of neighbouring rank share one."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def document(inspection: Inspection) -> dict[str, Any]:
    """All that is known, as JSON holds it; numbers of classes are null where the labels are no classes."""
    counts = inspection.counts
    return {
        "parts": dict(inspection.parts),
        "classes": None if counts is None else len(counts),
        "imbalance_ratio": None if counts is None else _imbalance_ratio(counts),
        "splits": None if counts is None else _splits(counts),
        "class_counts": None if counts is None else counts.tolist(),
        "class_names": list(inspection.classes) or None,
        "notes": list(inspection.notes),
        "wrong": [
            {"what": finding.what, "count": finding.count, "names": list(finding.names)}
            for finding in inspection.findings
        ],
    }


def _imbalance_ratio(counts: torch.Tensor) -> float | None:
    """n_1 / n_K; None with an empty class."""
    return float(counts.max() / counts.min()) if counts.min() > 0 else None


def _splits(counts: torch.Tensor) -> dict[str, dict[str, int]]:
    """Classes, and training images of them, by split."""
    masks = split_masks(counts)
    return {
        split: {"classes": int(mask.sum()), "images": int(counts[mask].sum())}
        for split, mask in zip(SPLITS, masks, strict=True)
    }


def lines(document: dict[str, Any], width: int, *, plain: bool) -> list[str]:
    """The document for people: what there is, the splits, a bar for each class, and what is wrong."""
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
    return [*shown, *([] if document["wrong"] else ["", "nothing is wrong"])]


def bars(counts: Sequence[int], classes: Sequence[str], width: int, *, plain: bool) -> list[str]:
    """A bar for each class, or for classes of neighbouring rank, the largest on top; as long as the mean count is.

    Args:
        counts: training images a class.
        classes: their names; empty for numbers.
        width: characters that a line may have.
        plain: ASCII only.
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
    room = max(width - margin - digits - 3, 10)
    longest = max(*means, 1)
    return [
        f"{label:<{margin}}  {number:>{digits}} {_bar(mean / longest * room, plain)}".rstrip()
        for label, number, mean in zip(labels, numbers, means, strict=True)
    ]


def _bar(length: float, plain: bool) -> str:
    if plain:
        return "#" * round(length) or ("." if length else "")
    eighths = max(round(length * 8), 1) if length else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def plot(counts: Sequence[int], file: Path) -> None:
    """Draw the class sizes, the largest first, with the splits told apart, as a PNG.

    Raises:
        StorageError: the file cannot be written.
    """
    # Here, not above: matplotlib takes a second, and most checks draw nothing.
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
    axes.set_ylim(bottom=0.8)  # a class of one image is seen
    axes.set_xlabel("classes by size")
    axes.set_ylabel("training images")
    axes.legend(frameon=False)
    with atomic_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
