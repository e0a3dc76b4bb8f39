"""Numbers of a result as the cells of its tables show them, in percent; the same in a terminal and in Markdown."""

from __future__ import annotations

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.result import Gain, Row

__all__ = ["difference", "half_width", "means", "percent", "plain", "points"]


def percent(value: float | None) -> str:
    """`79.48`; a dash for an empty split."""
    return "-" if value is None else f"{_hundredths(value):.2f}"


def points(value: float) -> str:
    """`+4.16`, and `+0.00` for what is 0 but for the rounding of floats."""
    return f"{_hundredths(value):+.2f}"


def _hundredths(value: float) -> float:
    """In percent, as it is shown; a 0 has no sign."""
    return round(100 * value, 2) + 0.0


def plain(value: float | None) -> str:
    """`0.438`, or `1.17e+29` of a head that all but diverged; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"


def means(row: Row) -> list[str]:
    """`79.48 ±0.02` by split: mean over seeds and half its 95% interval, which one run does not have."""
    cells: list[str] = []
    for split in SPLITS:
        mean, ci95 = getattr(row.mean, f"acc_{split}"), getattr(row.ci95, f"acc_{split}")
        cells.append(percent(mean) + half_width(ci95))
    return cells


def half_width(ci95: tuple[float, float] | None) -> str:
    """` ±0.02`, half an interval in points; nothing where there is none."""
    return "" if ci95 is None else f" ±{50 * (ci95[1] - ci95[0]):.2f}"


def difference(gain: Gain) -> str:
    """`+4.16 [+4.14, +4.17]`, in points."""
    span = "" if gain.ci95 is None else f" [{points(gain.ci95[0])}, {points(gain.ci95[1])}]"
    return f"{points(gain.mean)}{span}"
