"""Trains: datasets, backbones, feature banks and classifier re-training. Knows torch; never ray, optuna or mlflow.

The public surface: `open_bank` a feature bank, compose a `Run` from a `method` and a `TrainingSpec`, `fit` runs. Names
are imported when first used, so that `lt-train --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_train.features.bank import FeatureBank
    from lt_train.features.bank_files import open_bank
    from lt_train.methods.base import TrainingSpec
    from lt_train.methods.base import parse_method as method
    from lt_train.retrain.base import EpochRule, Run, RunResult
    from lt_train.retrain.fused import fit

__all__ = ["EpochRule", "FeatureBank", "Run", "RunResult", "TrainingSpec", "fit", "method", "open_bank"]

_PLACES = {
    "EpochRule": ("lt_train.retrain.base", "EpochRule"),
    "FeatureBank": ("lt_train.features.bank", "FeatureBank"),
    "Run": ("lt_train.retrain.base", "Run"),
    "RunResult": ("lt_train.retrain.base", "RunResult"),
    "TrainingSpec": ("lt_train.methods.base", "TrainingSpec"),
    "fit": ("lt_train.retrain.fused", "fit"),
    "method": ("lt_train.methods.base", "parse_method"),
    "open_bank": ("lt_train.features.bank_files", "open_bank"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'lt_train' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
