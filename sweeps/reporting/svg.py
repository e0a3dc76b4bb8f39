"""Draws figures with matplotlib: as inline SVG for a page, and as PNG files.

The SVG takes its colours from the page: text and axes are `currentColor`, styles are `--c0` to `--c7`, so that one
drawing works in light and dark mode. Styles differ in marker, dash and hatch as well as in colour. Text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sweeps.reporting.model import Figure, Panel, Series

if TYPE_CHECKING:
    from sweeps.reporting._canvas import Canvas

INK = "#010203"
"""Placeholder for `currentColor` in the SVG."""

PLACEHOLDERS = tuple(f"#01040{number}" for number in range(8))
"""Placeholders for the palette of the page."""

PALETTE = ("#0b6bcb", "#c2410c", "#7c3aed", "#0f766e", "#b0126f", "#6b7280", "#7a5c00", "#111827")
"""Colours of a PNG, which are those of the page in light mode."""

STYLES = tuple(f"C{number}" for number in range(8))

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
"""Size of one panel in inches. The page scales it."""

RASTERISED_ABOVE = 3000
"""A series with more points is drawn as an image instead of one element per point."""

RASTERISED = ("#3b82d6", "#d0602a", "#8f62ee", "#1a8f84", "#cf4a94", "#7d8590", "#9a7b1e", "#7a7a7a")
"""Colours of such an image, which cannot follow the page: each has enough contrast in light and dark mode."""

LEGEND_SIZE = 7.5


def _settings(ink: str, palette: Sequence[str]) -> dict[str, Any]:
    from cycler import cycler

    inked = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color", "hatch.color")
    return _SETTINGS | dict.fromkeys(inked, ink) | {"axes.prop_cycle": cycler(color=palette)}


_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.linewidth": 0.7,
    "hatch.linewidth": 0.6,
}


def draw_svg(figure: Figure, prefix: str) -> str:
    """The SVG element of a figure. `prefix` makes its ids unique on the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    canvas = _canvas(figure, _settings(INK, PLACEHOLDERS))
    canvas.patch.set_alpha(0)
    out = io.StringIO()
    with mpl.rc_context(canvas.settings):
        # `savefig` would compute the layout twice.
        FigureCanvasSVG(canvas).print_svg(out, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format")))
    return _inline(out.getvalue(), prefix, figure)


def draw(figure: Figure) -> Canvas:
    """A figure with its title as a matplotlib figure, which a notebook shows."""
    canvas = _canvas(figure, _settings("black", PALETTE), legends="lower")
    canvas.suptitle(figure.title, fontsize=10)
    return canvas


def draw_png(figure: Figure, file: Path) -> None:
    """Write a figure with its title as PNG."""
    canvas = draw(figure)
    canvas.savefig(file, dpi=canvas.RESOLUTION)


def _canvas(figure: Figure, settings: Mapping[str, Any], legends: Literal["upper", "lower"] = "upper") -> Canvas:
    """The drawn panels, with a common legend above or below them."""
    import matplotlib as mpl

    from sweeps.reporting._canvas import Canvas

    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    width = WIDTH * {1: 1.35, 2: 2}.get(columns, 0.75 * columns)
    with mpl.rc_context(dict(settings)):
        canvas = Canvas(settings, figsize=(width, HEIGHT * rows), layout="constrained")
        grid = canvas.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, figure.panels, strict=False):
            _panel(axes, panel)
        _legends(canvas, list(grid[: len(figure.panels)]), legends)
        for unused in grid[len(figure.panels) :]:
            unused.set_axis_off()
    return canvas


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
    axes.grid(visible=True, color=_ink(), alpha=0.12, linewidth=0.5)
    axes.set_axisbelow(True)
    if panel.value_label:
        cells = any(one.mark == "cells" for one in panel.series)
        mark = "more intense" if cells else "larger, more intense"
        axes.set_title(f"{mark}: {panel.value_label}", loc="right", fontsize=LEGEND_SIZE)


def _ink() -> Any:
    import matplotlib as mpl

    return mpl.rcParams["text.color"]


def _legends(canvas: Canvas, panels: Sequence[Any], place: Literal["upper", "lower"]) -> None:
    """One legend for all panels if they show the same series, else one per panel, outside the axes."""
    look = {"frameon": False, "fontsize": LEGEND_SIZE, "handlelength": 2.6, "columnspacing": 1.2}
    by_panel = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = max(by_panel, key=lambda found: len(found[1]))
    if all(set(own) <= set(labels) for _, own in by_panel):
        if len(labels) > 1:
            columns = _columns(labels, 72 * canvas.get_figwidth())
            canvas.legend(handles, labels, loc=f"outside {place} left", ncols=columns, **look)
        return
    width = canvas.get_figwidth() / len({axes.get_subplotspec().colspan.start for axes in panels})
    for axes, (own, names) in zip(panels, by_panel, strict=True):
        columns = _columns(names, 72 * (width - 0.8))
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        axes.legend(own, names, ncols=columns, **above, **look)
        if title := axes.get_title(loc="left"):
            rows = math.ceil(len(names) / columns)
            axes.set_title(title, loc="left", fontweight="bold", pad=6 + 1.75 * LEGEND_SIZE * rows)


def _columns(labels: Sequence[str], points: float) -> int:
    """How many labels fit side by side in this many points; a letter is about half as wide as high."""
    widest = max(len(label) for label in labels) * 0.56 * LEGEND_SIZE + 4.6 * LEGEND_SIZE
    return max(1, min(len(labels), int(points / widest)))


def _ticks(axes: Any, panel: Panel) -> None:
    from matplotlib import ticker

    whole = all(float(x).is_integer() for one in panel.series for x in one.x)
    for ticks, axis, log in ((panel.x_ticks, axes.xaxis, panel.x_log), (panel.y_ticks, axes.yaxis, panel.y_log)):
        if ticks is None:
            low, high = axis.get_view_interval()
            if log and 0 < low and high < 150 * low:  # up to about two decades: label 2 and 5 too
                axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
                axis.set_minor_formatter(ticker.NullFormatter())
            elif axis is axes.xaxis and whole and not log:
                axis.set_major_locator(ticker.MaxNLocator(integer=True))
            continue
        every = max(1, math.ceil(len(ticks) / 12))
        kept = list(ticks.items())[::every]
        axis.set_ticks([at for at, _ in kept], [name for _, name in kept])
        if axis is axes.xaxis and max(len(name) for _, name in kept) * len(kept) > 48:
            axes.tick_params(axis="x", rotation=30, labelsize=7.5)


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _line(axes: Any, one: Series, label: str | None, drawstyle: str = "default") -> None:
    style, few = one.style % 8, len(one.x) <= 30
    axes.plot(
        one.x,
        _with_gaps(one.y),
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
        # Later series are hollow, so that points below them stay visible.
        hollow = one.mark == "hollow" or (one.style > 0 and not one.faint)
        fill = {"facecolors": "none", "edgecolors": style} if hollow else {"color": style}
        axes.scatter(
            one.x,
            _with_gaps(one.y),
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
        _with_gaps(one.y),
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
        edge = {} if marker == "x" else {"edgecolors": _ink(), "linewidths": 0.7}
        axes.scatter(one.x, _with_gaps(one.y), **look, **edge)

    return mark


def _bars(axes: Any, one: Series, label: str | None) -> None:
    axes.bar(
        one.x,
        _with_gaps(one.y),
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
    for place, (x, y, share) in enumerate(zip(one.x, _with_gaps(one.y), shares, strict=True)):
        cell = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=STYLES[0], alpha=0.08 + 0.6 * share, linewidth=0)
        axes.add_patch(cell)
        if one.label is not None and len(one.x) <= 150:
            axes.text(x, y, one.label[place], ha="center", va="center", fontsize=7.5)
    axes.set_xlim(min(one.x) - 0.5, max(one.x) + 0.5)
    axes.set_ylim(min(_with_gaps(one.y)) - 0.5, max(_with_gaps(one.y)) + 0.5)


def _shares(values: Sequence[float]) -> list[float]:
    """Ranks scaled to [0, 1], so that one very poor trial does not make all others look alike."""
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
    """The SVG without file headers, in the colours of the page, with unique ids."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)  # would apply to the whole page
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}-', text)
    text = text.replace(INK, "currentColor")
    for number, placeholder in enumerate(PLACEHOLDERS):
        text = text.replace(placeholder, f"var(--c{number})")
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
