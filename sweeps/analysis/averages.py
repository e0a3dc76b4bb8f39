"""Averages of accuracies over classes or images, and their variance over test images; docs/statistics.md has formulas.

Shapes: N test images, K classes, H strata.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lt_train.core.errors import UserError
from sweeps.analysis.statistics import Array

__all__ = ["Average", "ClassAverage"]

Average = Literal["macro", "micro"]

POOLED_CLASSES = 10
"""Classes with one test image that share one estimate of the variance within a class."""


class ClassAverage:
    """Which images are averaged, and how: the mean over classes (macro) or over images (micro).

    Classes without test images and images without a known label are left out. Classes with one test image do not show
    the variance within them; they are pooled in groups of about ten of similar size, and each group is one stratum.
    This overstates the variance by the variance between the classes of a group.

    Attributes:
        classes: classes with test images, in order of strata `[<= K]`.
        missing: classes of the split without test images.
        pooled: classes with one test image.
        unknown: images without a known label.
        images: images in the average; `total` counts all test images.
        weights, counts: weight and images of each stratum `[H]`.
        effective: images of a balanced test set with the same variance, if all classes have the same variance.
        evenly: whether every image has the same weight, as in micro averages and on balanced test sets.
        degrees_of_freedom: of the variance over images, if all classes have the same variance; 0 for one image.
        notes: one sentence for each of `missing`, `pooled` and `unknown` that is not empty.
    """

    def __init__(
        self,
        labels: ArrayLike,
        *,
        split: ArrayLike | None = None,
        average: Average = "macro",
        sizes: ArrayLike | None = None,
    ) -> None:
        """Describe an average.

        Args:
            labels: class of each test image `[N]`; -1 for unknown.
            split: which classes are averaged, as a mask `[K]`; by default all.
            average: `macro`, the mean of the classes' accuracies, or `micro`, the mean over images.
            sizes: training images of each class `[K]`, for pooling; by default neighbours in class number are pooled.

        Raises:
            UserError: labels are not integers in [-1, K), or shapes differ.
        """
        known = np.asarray(labels)
        if known.ndim != 1 or not np.issubdtype(known.dtype, np.integer):
            raise UserError(f"labels must be integers of shape [N], got {known.dtype} of shape {list(known.shape)}")
        if average not in ("macro", "micro"):
            raise UserError(f"average must be macro or micro, got {average!r}")
        given = next((np.asarray(one) for one in (split, sizes) if one is not None), None)
        classes = max(int(known.max(initial=-1)) + 1, 1) if given is None else len(given)
        mask = np.ones(classes, dtype=bool) if split is None else np.asarray(split)
        order = np.arange(classes) if sizes is None else np.asarray(sizes)
        if mask.dtype != np.bool_ or mask.shape != (classes,) or order.shape != (classes,):
            raise UserError(
                f"split must be a mask and sizes must be counts of shape [K], "
                f"got {mask.dtype} of shape {list(mask.shape)} and shape {list(order.shape)}"
            )
        if known.size and not -1 <= known.min() <= known.max() < classes:
            raise UserError(
                f"labels must be in [-1, {classes}) for {classes} classes (-1: unknown), "
                f"got {known.min()} to {known.max()}"
            )
        self.total = len(known)
        self.unknown = int((known < 0).sum())
        counts = np.bincount(known[known >= 0], minlength=classes)
        self.missing = np.flatnonzero(mask & (counts == 0))
        larger, single = np.flatnonzero(mask & (counts > 1)), np.flatnonzero(mask & (counts == 1))
        self.pooled = single[np.argsort(-order[single], kind="stable")]
        self.classes = np.concatenate([larger, self.pooled])
        self.images = int(counts[self.classes].sum())
        rank = np.full(classes, len(self.classes))
        rank[self.classes] = np.arange(len(self.classes))
        place = np.where(known >= 0, rank[known], len(self.classes))
        self._index = np.argsort(place, kind="stable")[: self.images]
        groups = max(1, round(len(single) / POOLED_CLASSES)) if len(single) else 0
        group_sizes = [len(one) for one in np.array_split(single, groups)] if groups else []
        self.counts = np.concatenate([counts[larger], np.array(group_sizes, dtype=np.int64)])
        per_class = np.concatenate([np.ones(len(larger)), np.array(group_sizes)])
        size = max(len(self.classes), 1) if average == "macro" else max(self.images, 1)
        self.weights: Array = (per_class if average == "macro" else self.counts) / size
        self._starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        share = self.weights**2 / self.counts
        freedom = np.maximum(self.counts - 1, 0)
        self.effective = 1 / float(share.sum()) if self.images else 0.0
        self.evenly = math.isclose(self.effective, self.images)
        seen = freedom > 0
        self.degrees_of_freedom = (
            float(share.sum() ** 2 / (share[seen] ** 2 / freedom[seen]).sum()) if seen.any() else 0.0
        )
        self.notes = self._notes()

    def means(self, values: Array) -> Array:
        """Averages of `values [..., N]` over images: `[...]`."""
        means: Array = self._sums(values) / self.counts @ self.weights
        return means

    def image_variance(self, values: Array) -> Array:
        """Variance of `means(values)` over test images, for `values [..., N]`: `[...]`.

        Sum over strata of weight^2 s^2 / n, with n - 1 in the denominator of s^2. A lone class with one image gets the
        pooled variance of the others.
        """
        freedom = self.counts - 1
        squares = self._sums(values**2) - self._sums(values) ** 2 / self.counts
        squares = np.maximum(squares, 0.0)
        within = squares / np.maximum(freedom, 1)
        if freedom.sum() and not freedom.all():
            pooled = squares.sum(axis=-1, keepdims=True) / freedom.sum()
            within = np.where(freedom > 0, within, pooled)
        variance: Array = within @ (self.weights**2 / self.counts)
        return variance

    def _sums(self, values: Array) -> Array:
        sums: Array = np.add.reduceat(values[..., self._index], self._starts, axis=-1)
        return sums

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if len(self.missing):
            notes.append(f"Without test images, and left out: {_numbered(self.missing)}.")
        if len(self.pooled) == 1 < self.images:
            notes.append(f"One test image in {_numbered(self.pooled)}: its variance is that of the other classes.")
        elif len(self.pooled) > 1:
            notes.append(
                f"One test image in {_numbered(self.pooled)}: pooled with classes of similar size, "
                "which makes the interval wider where their accuracies differ."
            )
        if self.unknown:
            notes.append(f"{self.unknown} of {self.total} test images have no known label and are left out.")
        return tuple(notes)


def _numbered(classes: NDArray[np.int64]) -> str:
    shown = ", ".join(str(one) for one in sorted(classes)[:10])
    if len(classes) > 10:
        return f"{len(classes)} classes ({shown}, ...)"
    return f"class {shown}" if len(classes) == 1 else f"classes {shown}"
