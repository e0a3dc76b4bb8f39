"""Classifier re-training for long-tailed recognition: datasets, backbones, feature banks, methods and their training.

    bank = lt_train.open_bank("runs/cache/banks/...")
    fits = lt_train.fit(bank, lt_train.methods.LOS(smooth_factor=0.9), seeds=5)
    fits.to_frame()

    open_bank, bank_from_arrays  a FeatureBank on disk, or in memory from your own features
    fit                          re-trains classifiers on a bank; returns Fits, a sequence of Fit
    TrainingSpec                 epochs and batch size
    EpochSelection               which epoch's head counts
    Run, RunResult               one re-training, and what it returns
    methods, METHODS             the methods, such as methods.LOS; their registry, for methods of your own

Names are imported on first use, so that `import lt_train` does not import torch. `lt_train.testing` checks methods,
datasets and other kinds of your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lt_train.core.imports import lazy_exports

if TYPE_CHECKING:
    __version__: str
    from lt_train import methods as methods
    from lt_train.features.bank import FeatureBank as FeatureBank
    from lt_train.features.extract import bank_from_arrays as bank_from_arrays
    from lt_train.features.files import open_bank as open_bank
    from lt_train.methods.base import METHODS as METHODS
    from lt_train.methods.base import TrainingSpec as TrainingSpec
    from lt_train.retrain.base import EpochSelection as EpochSelection
    from lt_train.retrain.base import Run as Run
    from lt_train.retrain.base import RunResult as RunResult
    from lt_train.retrain.fits import Fit as Fit
    from lt_train.retrain.fits import Fits as Fits
    from lt_train.retrain.fits import fit as fit

_PUBLIC = {
    "METHODS": "lt_train.methods.base",
    "EpochSelection": "lt_train.retrain.base",
    "FeatureBank": "lt_train.features.bank",
    "Fit": "lt_train.retrain.fits",
    "Fits": "lt_train.retrain.fits",
    "Run": "lt_train.retrain.base",
    "RunResult": "lt_train.retrain.base",
    "TrainingSpec": "lt_train.methods.base",
    "bank_from_arrays": "lt_train.features.extract",
    "fit": "lt_train.retrain.fits",
    "methods": "",
    "open_bank": "lt_train.features.files",
}

__getattr__ = lazy_exports(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
