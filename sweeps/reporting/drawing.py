"""Figures as inline SVG, drawn with matplotlib from their series alone.

The page's colours are inherited: text and axes are `currentColor`, styles are the page's `--c0` to `--c7`, so that one
drawing serves light and dark. Styles differ in marker, dash and hatch as well as in colour. Text stays text. Knows
figures' data and matplotlib; knows no sweep.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from sweeps.reporting.model import Figure, Panel, Series

__all__ = ["MARKERS", "draw"]

INK = "#010203"
"""Stands for currentColor until the SVG is written; no style has it."""

STYLES = tuple(f"#01040{number}" for number in range(8))
"""Stand for the page's palette likewise."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1)),
    (0, (1, 3)),
    (0, (8, 2)),
    "-",
)
HATCHES = ("", "///", "...", "xx")

WIDTH, HEIGHT = 4.6, 3.0
"""Of one panel, in inches of which the page makes what room it has."""

RASTERISED_ABOVE = 3000
"""Points of a series that are worth an image instead of an element each."""

RASTERISED = ("#3b82d6", "#d0602a", "#8f62ee", "#1a8f84", "#cf4a94", "#7d8590", "#9a7b1e", "#7a7a7a")
"""Colours of such an image, which cannot follow the page's: each stands out from light and dark paper alike."""

LEGEND_SIZE = 7.5

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.linewidth": 0.7,
    "hatch.color": INK,
    "hatch.linewidth": 0.6,
}


def draw(figure: Figure, prefix: str) -> str:
    """The SVG element of a figure; `prefix` keeps its ids apart from others' on the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    axis = min(figure.axis, len(figure.panels))
    down = math.ceil(len(figure.panels) / axis)
    wide = WIDTH if axis > 1 else 1.35 * WIDTH
    with mpl.rc_context(_SETTINGS):
        canvas = Canvas(figsize=(wide * axis if axis < 3 else 0.75 * wide * axis, HEIGHT * down), layout="constrained")
        canvas.patch.set_alpha(0)
        axes = canvas.subplots(down, axis, squeeze=False).ravel()
        for place, panel in zip(axes, figure.panels, strict=False):
            _panel(place, panel)
        _legends(canvas, list(axes[: len(figure.panels)]))
        for empty in axes[len(figure.panels) :]:
            empty.set_axis_off()
        out = io.StringIO()
        # `savefig` would lay it all out twice.
        FigureCanvasSVG(canvas).print_svg(out, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format")))
    return _inline(out.getvalue(), prefix, figure)


def _panel(axes: Any, panel: Panel) -> None:
    axes.patch.set_alpha(0)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.title:
        axes.set_title(panel.title, loc="left", fontweight="bold")
    if panel.x_log:
        axes.set_xscale("log")
    if panel.y_log:
        axes.set_yscale("log")
    named: set[str] = set()
    for one in panel.series:
        _MARKS[one.mark](axes, one, one.name if one.name not in named else None)
        named.add(one.name)
    for line in panel.lines:
        style = {
            "color": STYLES[line.style % 8],
            "linestyle": DASHES[line.style % 8],
            "linewidth": 1.1,
            "label": line.name,
        }
        if line.y is not None:
            axes.axhline(line.y, **style)
        else:
            axes.axvline(line.x, **style)
    _ticks(axes, panel)
    axes.grid(visible=True, color=INK, alpha=0.12, linewidth=0.5)
    axes.set_axisbelow(True)
    if panel.value_label:
        cells = any(one.mark == "cells" for one in panel.series)
        axes.set_title(f"{'' if cells else 'larger, '}stronger: {panel.value_label}", loc="right", fontsize=LEGEND_SIZE)


def _legends(canvas: Any, panels: Sequence[Any]) -> None:
    """One for all panels where they show the same things, else one a panel; never where it could hide anything."""
    look = {"frameon": False, "fontsize": LEGEND_SIZE, "handlelength": 2.6, "columnspacing": 1.2}
    by_panel = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = max(by_panel, key=lambda found: len(found[1]))
    if all(set(own) <= set(labels) for _, own in by_panel):
        if len(labels) > 1:
            columns = _columns(labels, 72 * canvas.get_figwidth())
            canvas.legend(handles, labels, loc="outside upper left", ncols=columns, **look)
        return
    axis = canvas.get_figwidth() / len({axes.get_subplotspec().colspan.start for axes in panels})
    for axes, (own, names) in zip(panels, by_panel, strict=True):
        columns = _columns(names, 72 * (axis - 0.8))
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        axes.legend(own, names, ncols=columns, **above, **look)
        if title := axes.get_title(loc="left"):
            rows = math.ceil(len(names) / columns)
            axes.set_title(title, loc="left", fontweight="bold", pad=6 + 1.75 * LEGEND_SIZE * rows)


def _columns(labels: Sequence[str], points: float) -> int:
    """How many fit side by side in so many points; a letter is about half as wide as it is high."""
    widest = max(len(label) for label in labels) * 0.56 * LEGEND_SIZE + 4.6 * LEGEND_SIZE
    return max(1, min(len(labels), int(points / widest)))


def _ticks(axes: Any, panel: Panel) -> None:
    from matplotlib import ticker

    whole = all(float(x).is_integer() for one in panel.series for x in one.x)
    for ticks, place, log in ((panel.x_ticks, axes.xaxis, panel.x_log), (panel.y_ticks, axes.yaxis, panel.y_log)):
        if ticks is None:
            low, high = place.get_view_interval()
            if log and 0 < low and high < 150 * low:  # about two decades: say what lies between them
                place.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                place.set_major_formatter(ticker.FormatStrFormatter("%g"))
                place.set_minor_formatter(ticker.NullFormatter())
            elif place is axes.xaxis and whole and not log:
                place.set_major_locator(ticker.MaxNLocator(integer=True))
            continue
        every = max(1, math.ceil(len(ticks) / 12))
        kept = list(ticks.items())[::every]
        place.set_ticks([at for at, _ in kept], [name for _, name in kept])
        if place is axes.xaxis and max(len(name) for _, name in kept) * len(kept) > 48:
            axes.tick_params(axis="x", rotation=30, labelsize=7.5)


def _holes(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _line(axes: Any, one: Series, label: str | None, drawstyle: str = "default") -> None:
    style, few = one.style % 8, len(one.x) <= 30
    axes.plot(
        one.x,
        _holes(one.y),
        color=STYLES[style],
        linestyle=DASHES[style],
        drawstyle=drawstyle,
        marker=MARKERS[style] if few and drawstyle == "default" and not one.faint else None,
        markersize=4,
        linewidth=0.9 if one.faint else 1.7,
        alpha=0.45 if one.faint else 1.0,
        label=label,
    )


def _steps(axes: Any, one: Series, label: str | None) -> None:
    _line(axes, one, label, "steps-mid" if len(one.x) > 30 else "steps-post")


def _points(axes: Any, one: Series, label: str | None) -> None:
    many = len(one.x) > RASTERISED_ABOVE
    style = (RASTERISED if many else STYLES)[one.style % 8]
    size, alpha = (18.0 if len(one.x) <= 150 else 7.0), (0.35 if one.faint else 0.85)
    if one.value is None:
        # What lies on another is hollow, so that both are seen.
        hollow = one.mark == "hollow" or (one.style > 0 and not one.faint)
        fill = {"facecolors": "none", "edgecolors": style} if hollow else {"color": style}
        axes.scatter(
            one.x,
            _holes(one.y),
            s=size,
            marker=MARKERS[one.style % 8],
            alpha=alpha,
            label=label,
            rasterized=many,
            **fill,
        )
        return
    shares = _shares(one.value)
    axes.scatter(
        one.x,
        _holes(one.y),
        s=[10 + 70 * share**2 for share in shares],
        color=style,
        alpha=[0.2 + 0.7 * share for share in shares],
        linewidths=0,
        label=label,
        rasterized=many,
    )


def _special(marker: str, size: float) -> Any:
    def mark(axes: Any, one: Series, label: str | None) -> None:
        look = {"marker": marker, "s": size, "color": STYLES[one.style % 8], "zorder": 5, "label": label}
        edge = {} if marker == "x" else {"edgecolors": INK, "linewidths": 0.7}
        axes.scatter(one.x, _holes(one.y), **look, **edge)

    return mark


def _bars(axes: Any, one: Series, label: str | None) -> None:
    axes.bar(
        one.x,
        _holes(one.y),
        width=0.8,
        color=STYLES[one.style % 8],
        alpha=0.7,
        hatch=HATCHES[one.style % 4],
        linewidth=0,
        label=label,
    )


def _cells(axes: Any, one: Series, label: str | None) -> None:
    from matplotlib.patches import Rectangle

    shares = _shares(one.value or [])
    for place, (x, y, share) in enumerate(zip(one.x, _holes(one.y), shares, strict=True)):
        cell = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=STYLES[0], alpha=0.08 + 0.6 * share, linewidth=0)
        axes.add_patch(cell)
        if one.label is not None and len(one.x) <= 150:
            axes.text(x, y, one.label[place], ha="center", va="center", fontsize=7.5)
    axes.set_xlim(min(one.x) - 0.5, max(one.x) + 0.5)
    axes.set_ylim(min(_holes(one.y)) - 0.5, max(_holes(one.y)) + 0.5)


def _shares(values: Sequence[float]) -> list[float]:
    """ProcessGroup from 0 to 1, so that one very poor trial does not make all others alike."""
    order = sorted(set(values))
    return [order.index(value) / max(1, len(order) - 1) for value in values]


_MARKS: dict[str, Any] = {
    "line": _line,
    "steps": _steps,
    "points": _points,
    "hollow": _points,
    "cross": _special("x", 36),
    "star": _special("*", 150),
    "bars": _bars,
    "cells": _cells,
}


def _inline(text: str, prefix: str, figure: Figure) -> str:
    """The SVG without what only a file needs, in the page's colours, with ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)  # it would reach the whole page
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}-', text)
    text = text.replace(INK, "currentColor")
    for number, stand_in in enumerate(STYLES):
        text = text.replace(stand_in, f"var(--c{number})")
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font: \1px sans-serif", text)
    size = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', text)
    assert size is not None, "matplotlib writes a viewBox"
    start = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{size[0][9:-1]}" role="img" '
        f'aria-labelledby="{prefix}-alt" class="w{"1" if float(size[1]) < 600 else "2"}"><title id="{prefix}-alt">'
        f"{_escaped(figure.alt)}</title>"
    )
    text = re.sub(r"<svg[^>]*>", lambda _: start, text, count=1)
    return re.sub(r"\n\s*", "\n", text)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
