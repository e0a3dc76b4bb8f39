"""Trains: datasets, backbones, feature banks and classifier re-training. Knows torch; never ray, optuna or mlflow.

The public surface: `open_bank` a feature bank and `fit` runs on it.
"""

from __future__ import annotations

from lt_train.features.bank import FeatureBank, open_bank
from lt_train.methods.base import TrainingSpec
from lt_train.methods.base import parse_method as method
from lt_train.retrain.base import EpochRule, Run, RunResult
from lt_train.retrain.fused import fit

__all__ = ["EpochRule", "FeatureBank", "Run", "RunResult", "TrainingSpec", "fit", "method", "open_bank"]
