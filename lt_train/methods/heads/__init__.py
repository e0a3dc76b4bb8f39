"""Classifier heads, as plain modules and stacked over lanes."""

from lt_train.methods.heads.base import HEADS, HeadSpec, StackedHead
from lt_train.methods.heads.linear import Cosine, Linear
from lt_train.methods.heads.mlp import MLP
from lt_train.methods.heads.rescaled import LWS, DisAlign

__all__ = ["HEADS", "LWS", "MLP", "Cosine", "DisAlign", "HeadSpec", "Linear", "StackedHead"]
