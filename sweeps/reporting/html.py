"""The HTML page of a report: one file with everything in it, by `page.html.j2`. Knows reports and jinja2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sweeps.reporting.drawing import draw
from sweeps.reporting.formats import shown
from sweeps.reporting.model import Figure, Report, Section

__all__ = ["GENERATOR", "page"]

GENERATOR = "lt-sweep report"
"""What the page says it was made by; a directory with such a page may be written over."""


def page(title: str, reports: Sequence[Report], first: Sequence[Section]) -> str:
    """The whole page; `first` are sections about several sweeps.

    A report's places start with its number, so that several sweeps do not clash.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def svg(figure: Figure, place: str) -> Markup:
        return Markup(draw(figure, f"{place}-{figure.name}"))

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"shown": shown, "svg": svg, "generator": GENERATOR}
    return environment.get_template("page.html.j2").render(title=title, reports=reports, first=first)
