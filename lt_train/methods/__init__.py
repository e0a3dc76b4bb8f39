"""Methods: ways to obtain a classifier for frozen features. `LOS` is the method of the paper.

The parts of a method are in `heads`, `samplers`, `constraints` and `post_hoc`.
"""

from lt_train.methods.adjustment import LWS, DisAlign, LogitAdjust, TauNorm, Vanilla
from lt_train.methods.base import METHODS, CrossEntropyMethod, MethodSpec, TrainedMethod, TrainingSpec
from lt_train.methods.cross_entropy import CE, LAS, LDAM, LOS, BalancedSoftmax, Cosine, LogitAdjustLoss, MaxNorm
from lt_train.methods.rebalancing import CRT, LTWB, ClassBalanced, Focal, Resample

__all__ = [
    "CE",
    "CRT",
    "LAS",
    "LDAM",
    "LOS",
    "LTWB",
    "LWS",
    "METHODS",
    "BalancedSoftmax",
    "ClassBalanced",
    "Cosine",
    "CrossEntropyMethod",
    "DisAlign",
    "Focal",
    "LogitAdjust",
    "LogitAdjustLoss",
    "MaxNorm",
    "MethodSpec",
    "Resample",
    "TauNorm",
    "TrainedMethod",
    "TrainingSpec",
    "Vanilla",
]
