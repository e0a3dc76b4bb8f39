"""Which classes one setting gains and loses over another, and which of that is more than luck. Pure.

Every class is tested by itself, over seeds, and then all together: of many equal classes some always differ by luck.
Knows numpy and t tests; knows no sweep.

Shapes: S and R seeds, K classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sweeps.analysis.selection import Array

__all__ = ["LEVEL", "ClassGains", "beyond_luck", "class_gains"]

LEVEL = 0.05
"""Of the classes said to differ, the share that differs by luck alone, on average and at most."""

ROUNDING_VARIANCE = 1 / 12
"""Of a count of images: whole numbers lie up to a half from what they stand for."""


@dataclass(frozen=True)
class ClassGains:
    """Ours minus theirs by class.

    Attributes:
        gain: difference of the means over seeds `[K]`, as a fraction; NaN for a class without test images.
        p_value: two-sided, of each class alone `[K]`; None where one run on either side says nothing of its noise.
        sure: classes that differ beyond luck `[K]`, by `beyond_luck`.
    """

    gain: Array
    p_value: Array | None
    sure: NDArray[np.bool_]


def class_gains(ours: Array, theirs: Array, images: Array, *, paired: bool) -> ClassGains:
    """Compare accuracies by class `[S, K]` and `[R, K]`; `paired` where row stands beside row.

    Seeds often agree to the image, and a t test would call a single image certain. So no spread counts as less than
    that of rounding to whole ones.

    Args:
        ours: accuracies as fractions, by seed and class.
        theirs: the same of the other.
        images: test images of each class `[K]`.
        paired: whether rows are of the same seeds.
    """
    gain = ours.mean(axis=0) - theirs.mean(axis=0)
    if min(len(ours), len(theirs)) < 2:
        return ClassGains(gain, None, np.zeros(len(gain), dtype=bool))
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        least = ROUNDING_VARIANCE / np.asarray(images, dtype=np.float64) ** 2
        if paired:
            variance = np.maximum((ours - theirs).var(axis=0, ddof=1), 2 * least) / len(ours)
            degrees = np.full(len(gain), len(ours) - 1.0)
        else:
            parts = [np.maximum(values.var(axis=0, ddof=1), least) / len(values) for values in (ours, theirs)]
            variance = parts[0] + parts[1]
            degrees = variance**2 / (parts[0] ** 2 / (len(ours) - 1) + parts[1] ** 2 / (len(theirs) - 1))
        p_value = 2 * special.stdtr(degrees, -np.abs(gain) / np.sqrt(variance))
    return ClassGains(gain, p_value, beyond_luck(p_value))


def beyond_luck(p_value: Array, level: float = LEVEL) -> NDArray[np.bool_]:
    """Benjamini and Hochberg's procedure: which of `p_value [K]` stand, NaN never.

    At most `level` of those that stand are false, on average, where tests are independent or positively dependent.
    """
    known = np.flatnonzero(~np.isnan(p_value))
    order = known[np.argsort(p_value[known], kind="stable")]
    below = p_value[order] <= level * np.arange(1, len(order) + 1) / max(1, len(order))
    sure = np.zeros(len(p_value), dtype=bool)
    if below.any():
        sure[order[: int(np.flatnonzero(below)[-1]) + 1]] = True
    return sure
