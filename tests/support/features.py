"""Features as a user would bring them: an npz of six long-tailed classes, on which a sweep is a matter of seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["CLASS_COUNTS", "write_features"]

CLASS_COUNTS = (130, 80, 40, 21, 12, 6)
"""Training images a class."""


def write_features(path: Path) -> Path:
    """Two training views, a mirrored test view, a stage-1 head that favours large classes, as stage 1 leaves it."""
    rng = np.random.default_rng(7)
    classes, dim = len(CLASS_COUNTS), 12
    centers = rng.normal(size=(classes, dim))

    def draw(counts: tuple[int, ...], views: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), counts)
        features = centers[labels][None] + 1.3 * rng.normal(size=(views, len(labels), dim))
        return features.astype(np.float32), labels

    train, test, val = draw(CLASS_COUNTS, 2), draw((50,) * classes, 2), draw((15,) * classes, 1)
    np.savez(
        path,
        train_features=train[0],
        train_labels=train[1],
        test_features=test[0],
        test_labels=test[1],
        val_features=val[0],
        val_labels=val[1],
        weight=(0.5 * centers).astype(np.float32),
        bias=np.log(np.array(CLASS_COUNTS) / sum(CLASS_COUNTS)).astype(np.float32),
    )
    return path
