"""Methods: ways to obtain a classifier for frozen features. `LOS` is the method of the paper.

The parts of a method are in `heads`, `samplers`, `constraints` and `post_hoc`.
"""

from lt_train.methods.base import METHODS, CrossEntropyMethod, MethodSpec, TrainedMethod, TrainingSpec
from lt_train.methods.cross_entropy import CE, LAS, LOS
from lt_train.methods.margins import LDAM, BalancedSoftmax, LogitAdjustLoss
from lt_train.methods.rescaling import LWS, DisAlign
from lt_train.methods.reweighting import ClassBalanced, Focal
from lt_train.methods.sampling import CRT, Resample
from lt_train.methods.untrained import LogitAdjust, TauNorm, Vanilla
from lt_train.methods.weight_norms import LTWB, Cosine, MaxNorm

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
