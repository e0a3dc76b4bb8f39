"""The page of a report in a headless Chromium: no requests, no errors, no horizontal scrolling, enough contrast.

Skipped without Chromium; CI installs it. Screenshots are kept as test output.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.devtools import CHROMIUM, Look, look
from support.features import write_features

import sweeps
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.reporting.write import Written, write

pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"), pytest.mark.slow]

Seen = Callable[[int, bool], Look]

CONTRAST = """(() => {
  const light = c => c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const paper = light(getComputedStyle(document.documentElement).backgroundColor);
  const ratio = c => { const [a, b] = [light(c), paper].sort((x, y) => y - x); return (a + .05) / (b + .05); };
  const marks = [...document.querySelectorAll('svg path, svg use, svg text')].flatMap(e => {
    const s = getComputedStyle(e); return [s.stroke, s.fill].filter(c => c.startsWith('rgb(')); });
  const words = [...document.querySelectorAll('p, th, td, li, h1, h2, figcaption')].map(e => getComputedStyle(e).color);
  return [Math.min(...[...new Set(marks)].map(ratio)), Math.min(...[...new Set(words)].map(ratio))];
})()"""
"""The lowest WCAG contrast of drawn elements and of text."""

OUTSIDE = """[...document.querySelectorAll('p, h1, h2, figcaption, li')]
  .filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.textContent)"""

SCROLLS = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1).length"

WITHOUT_NAME = (
    "[...document.querySelectorAll('svg')].filter(e => e.querySelector('title').textContent.length < 20).length"
)

DEAD_LINKS = """[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))
  .filter(h => !h.startsWith('#') || !document.getElementById(h.slice(1)))"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    place = tmp_path_factory.mktemp("browser")
    space = {
        "method.smooth_factor": {"uniform": [0.1, 0.95]},
        "method.lr": {"loguniform": [1e-3, 1e-1]},
        "method.weight_decay": {"loguniform": [1e-6, 1e-2]},
    }
    spec: SweepSpec = load_resolved(
        {
            "version": 1,
            "name": "in-a-browser",
            "dataset": {"kind": "arrays", "path": str(write_features(place / "x.npz"))},
            "methods": ["los", "ce", {"method": "focal", "space": {"method.gamma": {"uniform": [0, 5]}}}],
            "training": {"epochs": 5},
            "search": {"trials": 12, "space": space},
            "selection": {"seeds": 3, "finalists": 2},
            "backend": "inline",
            "tracking": "none",
            "storage": str(place / "runs"),
        }
    )
    sweeps.run(spec)
    return write([place / "runs" / "in-a-browser"])


@pytest.fixture(scope="module")
def seen(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """`seen(width, dark)`: the page as opened once."""
    kept: dict[tuple[int, bool], Look] = {}

    def open_once(width: int, dark: bool) -> Look:
        if (width, dark) not in kept:
            place = tmp_path_factory.mktemp("profile")
            scripts = (CONTRAST, OUTSIDE, SCROLLS, WITHOUT_NAME, DEAD_LINKS)
            found = kept[width, dark] = look(CHROMIUM, written.page, place, width=width, dark=dark, scripts=scripts)
            (place / f"report-{width}-{'dark' if dark else 'light'}.png").write_bytes(found.image)
        return kept[width, dark]

    return open_once


windows = pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (400, False), (400, True)])


@windows
def test_the_page_makes_no_requests_and_logs_no_errors(seen: Seen, written: Written, width: int, dark: bool) -> None:
    found = seen(width, dark)
    assert found.requests == [written.page.resolve().as_uri()]
    assert found.errors == []
    assert found.image.startswith(b"\x89PNG")


@windows
def test_only_wide_tables_scroll_horizontally(seen: Seen, width: int, dark: bool) -> None:
    found = seen(width, dark)
    assert found.scroll_width <= width
    _, outside, scrolling, *_ = found.answers
    assert outside == []
    assert scrolling > 0 or width == 1400


@windows
def test_figures_and_text_have_enough_contrast(seen: Seen, width: int, dark: bool) -> None:
    (drawn, said), *_ = seen(width, dark).answers
    assert drawn >= 3.0  # minimum of WCAG for graphics
    assert said >= 4.5  # and for text


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_a_page_of_several_sweeps_meets_the_same_rules(
    written: Written, tmp_path: Path, width: int, dark: bool
) -> None:
    first = written.page.parent.parent
    shutil.copytree(
        first, tmp_path / "runs" / "a-copy-with-another-and-rather-long-name", ignore=shutil.ignore_patterns("report")
    )
    page = sweeps.report(first, tmp_path / "runs" / "a-copy-with-another-and-rather-long-name", out=tmp_path / "out")
    scripts = (CONTRAST, OUTSIDE, WITHOUT_NAME, DEAD_LINKS)
    found = look(CHROMIUM, page, tmp_path / "profile", width=width, dark=dark, scripts=scripts)
    (tmp_path / f"several-{width}-{'dark' if dark else 'light'}.png").write_bytes(found.image)
    assert found.requests == [page.resolve().as_uri()]
    assert found.errors == []
    assert found.scroll_width <= width
    (drawn, said), outside, without_name, dead = found.answers
    assert (outside, without_name, dead) == ([], 0, [])
    assert drawn >= 3.0
    assert said >= 4.5


def test_light_and_dark_mode_differ(seen: Seen) -> None:
    assert seen(1400, False).image != seen(1400, True).image


def test_every_figure_has_a_text_alternative_and_every_link_a_target(seen: Seen) -> None:
    *_, without_name, dead = seen(1400, False).answers
    assert without_name == 0
    assert dead == []


def test_requests_and_errors_of_a_page_are_detected(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<script>console.error("no")</script><img src="http://127.0.0.1:9/x.png" style="width:2000px">')
    found = look(CHROMIUM, page, tmp_path / "profile", width=400)
    assert "http://127.0.0.1:9/x.png" in found.requests
    assert any("no" in message for message in found.errors)
    assert found.scroll_width > 400
