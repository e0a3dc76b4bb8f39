"""Figures as SVG and PNG: colours, rasterised points and legends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeps.reporting import svg
from sweeps.reporting.model import Figure, Panel, Series
from sweeps.reporting.svg import RASTERISED, RASTERISED_ABOVE, draw_png, draw_svg

PAPERS = ("#ffffff", "#14171b")


def figure(*panels: tuple[Series, ...]) -> Figure:
    shown = tuple(Panel("x", "y", series, title=f"panel {number}") for number, series in enumerate(panels))
    return Figure("some", "Some", "", "A description.", shown)


def line(name: str, style: int = 0) -> Series:
    return Series(name, [0.0, 1.0], [0.0, 1.0], style=style)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG counts it."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("paper", PAPERS)
def test_rasterised_colours_have_contrast_in_light_and_dark_mode(paper: str) -> None:
    for colour in RASTERISED:
        high, low = sorted((luminance(colour), luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_thousands_of_points_are_drawn_as_one_image() -> None:
    many = [float(number) for number in range(RASTERISED_ABOVE + 1)]
    drawn = draw_svg(figure((Series("trials", many, many, "points"),)), "p")
    assert drawn.count("<image") == 1
    assert len(drawn) < 200_000
    few = draw_svg(figure((Series("trials", many[:9], many[:9], "points"),)), "p")
    assert "<image" not in few
    assert "var(--c0)" in few


def words(drawn: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", drawn)


def test_panels_that_show_the_same_share_one_legend_and_others_have_their_own() -> None:
    shared = words(draw_svg(figure((line("all"), line("few", 1)), (line("all"), line("few", 1))), "p"))
    assert (shared.count("all"), shared.count("few")) == (1, 1)
    own = words(draw_svg(figure((line("mean 1.0"), line("few", 1)), (line("mean 2.0"), line("few", 1))), "p"))
    assert (own.count("mean 1.0"), own.count("mean 2.0"), own.count("few")) == (1, 1, 2)
    assert "only" not in words(draw_svg(figure((line("only"),)), "p"))


def test_a_legend_of_many_long_names_stays_within_the_figure() -> None:
    names = [f"balanced_softmax_number_{number}" for number in range(8)]
    drawn = draw_svg(figure(tuple(line(name, number) for number, name in enumerate(names))), "p")
    (width,) = re.findall(r'viewBox="0 0 ([0-9.]+) ', drawn)
    places = re.findall(r'<text[^>]* x="([0-9.]+)"[^>]*>(balanced[^<]*)<', drawn)
    assert sorted(name for _, name in places) == names
    assert max(float(x) + 4 * len(name) for x, name in places) < float(width)  # a letter of 7.5 pt is some 4 pt wide


def test_a_png_has_the_colours_of_the_light_page_and_svg_none_of_its_own(tmp_path: Path) -> None:
    shown = figure((line("all"), line("few", 1)))
    draw_png(shown, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    drawn = draw_svg(shown, "p")
    assert "var(--c1)" in drawn
    assert not any(colour in drawn for colour in (*svg.PALETTE, *svg.PLACEHOLDERS, svg.INK))
