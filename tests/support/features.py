"""Features as a user would bring them: an npz of six long-tailed classes, on which a sweep is a matter of seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["CLASS_COUNTS", "write_features"]

CLASS_COUNTS = (130, 80, 40, 21, 12, 6)
"""Training images a class."""


def write_features(path: Path, counts: tuple[int, ...] = CLASS_COUNTS, *, test: int = 50, val: int = 15) -> Path:
    """Two training views, a mirrored test view, a stage-1 head that favours large classes, as stage 1 leaves it.

    `test` and `val` are images a class; without any there is no validation set.
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
