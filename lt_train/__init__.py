"""Classifier re-training for long-tailed recognition: datasets, backbones, feature banks, methods and their training.

Open a feature bank with `open_bank`, build a `Run` from a method and a `TrainingSpec`, and train runs with `fit`.
Names are imported on first use, so that `import lt_train` does not import torch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lt_train.core.imports import lazy_exports

if TYPE_CHECKING:
    __version__: str
    from lt_train import methods
    from lt_train.features.bank import FeatureBank
    from lt_train.features.files import open_bank
    from lt_train.methods.base import METHODS, TrainingSpec
    from lt_train.retrain.base import EpochSelection, Run, RunResult
    from lt_train.retrain.fused import fit

__all__ = [
    "METHODS",
    "EpochSelection",
    "FeatureBank",
    "Run",
    "RunResult",
    "TrainingSpec",
    "__version__",
    "fit",
    "methods",
    "open_bank",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "METHODS": "lt_train.methods.base",
        "EpochSelection": "lt_train.retrain.base",
        "FeatureBank": "lt_train.features.bank",
        "Run": "lt_train.retrain.base",
        "RunResult": "lt_train.retrain.base",
        "TrainingSpec": "lt_train.methods.base",
        "fit": "lt_train.retrain.fused",
        "methods": "",
        "open_bank": "lt_train.features.files",
    },
)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __dir__() -> list[str]:
    return sorted(__all__)
