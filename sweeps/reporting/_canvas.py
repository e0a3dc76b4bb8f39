"""The class of drawn figures. Imports matplotlib, so this module is imported where it is used."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["Canvas"]


class Canvas(Figure):
    """A matplotlib figure that is drawn with its own settings, whatever is set when it is shown or saved.

    A notebook shows it like a figure of pyplot, which would keep every figure until it is closed.

    Args:
        settings: matplotlib's rc parameters.
        options: of `matplotlib.figure.Figure`.
    """

    RESOLUTION = 120
    """Of a PNG, in dots per inch."""

    def __init__(self, settings: Mapping[str, Any], **options: Any) -> None:
        self.settings = dict(settings)
        super().__init__(**options)

    def draw(self, renderer: Any) -> None:
        """See `matplotlib.figure.Figure.draw`."""
        with mpl.rc_context(self.settings):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=self.RESOLUTION)
        return out.getvalue()
