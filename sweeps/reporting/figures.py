"""Figures of a finished sweep, drawn with matplotlib: LoMa by class and accuracy by class.

Each takes the table it draws, so that the numbers can always be had beside the image. Readable without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["by_class"]

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")
"""Told apart without colour, and seen where one line lies on another."""

MOST_INSIDE = 4
"""Names of lines that find room within the axes."""


def by_class(
    series: Mapping[str, Sequence[float | None]],
    counts: Sequence[int],
    title: str,
    unit: str,
    file: Path,
) -> None:
    """Draw one line a method over classes, the largest class first, and class sizes as bars behind them.

    Args:
        series: method name to one value a class (None is a gap).
        counts: training images a class.
        title: of the figure.
        unit: label of the value axis.
        file: PNG to write.
    """
    from matplotlib.figure import Figure

    order = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
    places = range(len(order))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    sizes = axes.twinx()
    edges = [place - 0.5 for place in range(len(order) + 1)]
    # One shape, however many classes there are.
    sizes.stairs([counts[k] for k in order], edges, fill=True, color="0.88")
    sizes.set_yscale("log")
    sizes.set_ylabel("training images (bars)")
    axes.set_zorder(sizes.get_zorder() + 1)
    axes.set_frame_on(False)
    for number, (name, values) in enumerate(series.items()):
        heights: list[Any] = [float("nan") if values[k] is None else values[k] for k in order]
        axes.plot(
            places,
            heights,
            marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number % len(DASHES)],
            markersize=4,
            linewidth=1.2,
            label=name,
        )
    if len(order) <= 30:
        axes.set_xticks(list(places), [str(k) for k in order])
    axes.set_xlabel("class, by descending size")
    axes.set_ylabel(unit)
    axes.set_title(title)
    if len(series) > MOST_INSIDE:
        figure.legend(frameon=False, loc="outside right upper")
    else:
        axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
