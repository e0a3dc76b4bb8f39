"""Exports: a trained classifier as a file with a model card beside it, and its predictions for a folder of images."""

from sweeps.reporting.export.directory import FORMATS, export_model
from sweeps.reporting.export.predict import predict
from sweeps.reporting.export.trained import TrainedHead, trained_head, trial_named, winner_state_dict

__all__ = [
    "FORMATS",
    "TrainedHead",
    "export_model",
    "predict",
    "trained_head",
    "trial_named",
    "winner_state_dict",
]
