"""A sweep of seconds on generated features, on which trackers and backends are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sweeps.config.spec import SweepSpec

__all__ = ["small_sweep"]

TRAIN = (60, 30, 12, 4)
"""Training images per class."""


def small_sweep(place: Path, **sections: Any) -> SweepSpec:
    """A sweep with finished, stopped and failed trials, finalists and two seeds; its files are in `place`.

    Args:
        place: an existing directory.
        sections: replace those of the sweep.
    """
    numbers, features = np.random.default_rng(0), place / "features.npz"
    classes, dim = len(TRAIN), 6
    means = numbers.normal(size=(classes, dim)).astype(np.float32)
    arrays: dict[str, Any] = {"weight": 0.1 * means, "bias": 0.1 * np.log(np.array(TRAIN, np.float32))}
    for part, views, counts in (("train", 2, TRAIN), ("val", 1, (8,) * classes), ("test", 1, (40,) * classes)):
        labels = np.repeat(np.arange(classes), counts)
        noise = numbers.normal(size=(views, len(labels), dim)).astype(np.float32)
        arrays |= {f"{part}_features": means[labels] + 0.9 * noise, f"{part}_labels": labels}
    np.savez(features, **arrays)
    given: dict[str, Any] = {
        "name": "small",
        "dataset": {"kind": "arrays", "path": str(features)},
        "method": "los",
        "baselines": ["vanilla", {"kind": "ce", "lr": 1e38}],
        "training": {"epochs": 3},
        "search": {
            "algorithm": "random",
            "trials": 6,
            "proposal_batch": 6,
            "early_stopping": {"kind": "successive_halving", "rungs": [1]},
            "space": {
                "method.lr": {"loguniform": [1e-3, 1e-1]},
                "method.smooth_factor": {"uniform": [0.1, 0.95]},
            },
        },
        "selection": {"seeds": 2, "finalists": 2, "extended_training": None},
        "backend": "inline",
        "tracking": "none",
        "storage": str(place / "runs"),
    }
    return SweepSpec(**(given | sections))
