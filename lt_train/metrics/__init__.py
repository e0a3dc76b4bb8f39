"""Metrics: accuracy by class split, logit statistics, and further metrics of predictions, which may be your own."""

from lt_train.metrics.accuracy import (
    SPLITS,
    correct_per_class,
    split_accuracy,
    split_masks,
    split_of,
    top1_correct,
)
from lt_train.metrics.base import ACCURACIES, METRICS, MetricSpec, Score, evaluate, scores
from lt_train.metrics.logits import LogitStatistics, loma_by_group, loma_cv
from lt_train.metrics.predictions import NLL, MacroF1, MeanClassAccuracy

__all__ = [
    "ACCURACIES",
    "METRICS",
    "NLL",
    "SPLITS",
    "LogitStatistics",
    "MacroF1",
    "MeanClassAccuracy",
    "MetricSpec",
    "Score",
    "correct_per_class",
    "evaluate",
    "loma_by_group",
    "loma_cv",
    "scores",
    "split_accuracy",
    "split_masks",
    "split_of",
    "top1_correct",
]
