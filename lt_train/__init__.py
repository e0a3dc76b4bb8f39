"""Classifier re-training for long-tailed recognition: datasets, backbones, feature banks, methods and their training.

Open a feature bank with `open_bank`, build a `Run` from a method and a `TrainingSpec`, and train runs with `fit`.
Names are imported on first use, so that `import lt_train` does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from typing import TYPE_CHECKING, Any

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
    "fit",
    "methods",
    "open_bank",
]

_MODULES = {
    "METHODS": "lt_train.methods.base",
    "EpochSelection": "lt_train.retrain.base",
    "FeatureBank": "lt_train.features.bank",
    "Run": "lt_train.retrain.base",
    "RunResult": "lt_train.retrain.base",
    "TrainingSpec": "lt_train.methods.base",
    "fit": "lt_train.retrain.fused",
    "open_bank": "lt_train.features.files",
}


logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "methods":
        return importlib.import_module("lt_train.methods")
    if name == "__version__":
        return importlib.metadata.version("longtail-sweeps")
    if name not in _MODULES:
        raise AttributeError(f"module 'lt_train' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
