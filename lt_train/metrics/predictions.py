"""Metrics of predictions and probabilities: F1, mean accuracy of the classes, and negative log likelihood.

Shapes: N images, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from lt_train.metrics.base import METRICS, Floats, Integers, MetricSpec

__all__ = ["NLL", "MacroF1", "MeanClassAccuracy"]


@METRICS.register
class MacroF1(MetricSpec):
    """Mean over classes of `F1_k = 2 TP_k / (2 TP_k + FP_k + FN_k)`, in [0, 1]; classes without images are left out.

    Unlike the mean of the class accuracies, it also falls if images of other classes are predicted as a rare one.
    Source: Opitz and Burst 2019, Macro F1 and Macro F1 (averaged F1); the same as in scikit-learn.
    """

    kind: Literal["macro_f1"] = "macro_f1"

    def __call__(self, probabilities: Floats, predictions: Integers, labels: Integers, class_counts: Integers) -> float:
        """See `MetricSpec.__call__`."""
        right, images, predicted = _counts(predictions, labels, len(class_counts))
        seen = images > 0
        return float(np.mean(2 * right[seen] / (images + predicted)[seen]))


@METRICS.register
class MeanClassAccuracy(MetricSpec):
    """Mean over classes of `TP_k / N_k` (recall), in [0, 1]; classes without images are left out. Balanced accuracy.

    On a test set with equally many images per class it is top-1 accuracy. Source: Brodersen et al. 2010, The balanced
    accuracy and its posterior distribution; the same as in scikit-learn.
    """

    kind: Literal["mean_class_accuracy"] = "mean_class_accuracy"

    def __call__(self, probabilities: Floats, predictions: Integers, labels: Integers, class_counts: Integers) -> float:
        """See `MetricSpec.__call__`."""
        right, images, _ = _counts(predictions, labels, len(class_counts))
        seen = images > 0
        return float(np.mean(right[seen] / images[seen]))


@METRICS.register
class NLL(MetricSpec):
    """Negative log likelihood `-mean(log p_y)` in nats, in [0, 87.4]: how well the probabilities are calibrated.

    Lower is better, so it is reported and cannot be selected on. `p_y` is at least the smallest normal float32 number.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks; the log loss of scikit-learn up to that bound.
    """

    higher_is_better: ClassVar[bool] = False
    percent: ClassVar[bool] = False

    kind: Literal["nll"] = "nll"

    def __call__(self, probabilities: Floats, predictions: Integers, labels: Integers, class_counts: Integers) -> float:
        """See `MetricSpec.__call__`."""
        true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        return float(-np.log(np.maximum(true, np.finfo(np.float32).tiny)).mean())


def _counts(predictions: Integers, labels: Integers, classes: int) -> tuple[Integers, Integers, Integers]:
    """By class `[K]`: right predictions, images, and predictions of the class."""
    right, images, predicted = (
        np.bincount(values, minlength=classes) for values in (labels[predictions == labels], labels, predictions)
    )
    return right, images, predicted
