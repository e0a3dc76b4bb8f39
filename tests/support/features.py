"""An npz of features of six long-tailed classes, on which a sweep takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["CLASS_COUNTS", "write_features"]

CLASS_COUNTS = (130, 80, 40, 21, 12, 6)
"""Training images per class."""


def write_features(path: Path, counts: tuple[int, ...] = CLASS_COUNTS, *, test: int = 50, val: int = 15) -> Path:
    """Write two training views, a mirrored test view and a stage-1 head that favours large classes.

    `test` and `val` are images per class; `val=0` writes no validation set.
    """
    rng = np.random.default_rng(7)
    classes, dim = len(counts), 12
    centers = rng.normal(size=(classes, dim))

    def draw(counts: tuple[int, ...], views: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), counts)
        features = centers[labels][None] + 1.3 * rng.normal(size=(views, len(labels), dim))
        return features.astype(np.float32), labels

    sets = {"train": draw(counts, 2), "test": draw((test,) * classes, 2)}
    if val:
        sets["val"] = draw((val,) * classes, 1)
    np.savez(
        path,
        **{f"{name}_features": features for name, (features, _) in sets.items()},
        **{f"{name}_labels": labels for name, (_, labels) in sets.items()},
        weight=(0.5 * centers).astype(np.float32),
        bias=np.log(np.array(counts) / sum(counts)).astype(np.float32),
    )
    return path
