"""Base class of further metrics (`MetricSpec`), their plugin group, and the columns of the score arrays of a run.

Every run is scored by its accuracy over all classes and by split. A sweep may list further metrics. They follow the
accuracies as columns of all score arrays, and are recorded, selected on and shown like them.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
import numbers
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from lt_train.core.errors import UserError, first_line
from lt_train.core.registry import KindSpec, Registry
from lt_train.metrics.accuracy import SPLITS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ACCURACIES", "METRICS", "MetricSpec", "Score", "evaluate", "scores"]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_RESERVED = re.compile(
    r"(acc|val|seed|epoch|best_of|loma|stage1|log10)_.*|all|many|medium|few|loss|objective|seeds?|phase|method|trial|"
    r"number|stopped|failed|failure|status|epochs?|keys?|pack|finished_at|role|best|sweep|value|what|reference"
)
"""Names with another meaning in tables or in tracking."""


class MetricSpec(KindSpec):
    """Base class of metrics of the predictions on an evaluation set.

    A metric is computed after every epoch for every run, possibly in several threads at once.

    Class attributes:
        higher_is_better: whether a higher value is better. Only such a metric can be selected on.
        percent: whether the values are fractions, which are shown in percent. Only such a metric can be selected on,
            because the smallest differences that count are defined in percentage points.
    """

    higher_is_better: ClassVar[bool] = True
    percent: ClassVar[bool] = True

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a kind that is the name of something else.

        Raises:
            TypeError: the kind is reserved.
        """
        super().__pydantic_init_subclass__(**kwargs)
        if _RESERVED.fullmatch(cls.kind_name()):
            raise TypeError(
                f"metrics: {cls.__name__}: the kind {cls.kind_name()!r} has another meaning in results; choose another"
            )

    @abstractmethod
    def __call__(self, probabilities: Floats, predictions: Integers, labels: Integers, class_counts: Integers) -> float:
        """The value of the metric on one evaluation set. The arrays are read-only and on the CPU.

        Args:
            probabilities: float32 `[N, K]`, softmax of the logits (mean over the views of an image, after the post-hoc
                adjustment); all are finite.
            predictions: int64 `[N]`, the class with the largest logit.
            labels: int64 `[N]`, true classes.
            class_counts: int64 `[K]`, training images per class.

        Returns:
            A number. NaN where the metric is undefined, for example on a set without images of the classes that it is
            about. Infinity counts as NaN.
        """


METRICS = Registry("metrics", MetricSpec, "lt_train.metrics")  # type: ignore[type-abstract]
"""The plugin group of metrics."""


@dataclass(frozen=True)
class Score:
    """A column of the score arrays of a run: an accuracy, or one of the further metrics.

    Attributes:
        name: `acc_all`, `acc_many`, `acc_medium`, `acc_few`, or the kind of a metric.
        percent: whether values are fractions, which are shown in percent.
        higher_is_better: whether a higher value is better.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    percent: bool = True
    higher_is_better: bool = True

    @property
    def title(self) -> str:
        """The heading of its column: the split, or the kind of the metric."""
        return self.name.removeprefix("acc_")


ACCURACIES = tuple(Score(f"acc_{split}") for split in SPLITS)
"""The columns that every score array has."""


def scores(metrics: Sequence[MetricSpec]) -> tuple[Score, ...]:
    """The columns of the score arrays of runs with these further metrics."""
    return (*ACCURACIES, *(Score(one.kind, one.percent, one.higher_is_better) for one in metrics))


def evaluate(metrics: Sequence[MetricSpec], logits: Tensor, labels: Tensor, class_counts: Tensor) -> list[float]:
    """The values of metrics on one evaluation set, in their order.

    Args:
        metrics: may be empty; nothing is computed then.
        logits: float32 `[N, K]`.
        labels: int64 `[N]`.
        class_counts: int64 `[K]`, training images per class.

    Returns:
        Float32 values; NaN where a metric is undefined, and where logits are not finite.

    Raises:
        UserError: a metric raises an error, or returns something else than a number; the message names it.
    """
    if not metrics:
        return []
    if not bool(logits.isfinite().all()):
        return [math.nan] * len(metrics)
    tensors = (logits.softmax(dim=-1), logits.argmax(dim=-1), labels, class_counts)
    arrays = [tensor.cpu().numpy() for tensor in tensors]
    return [_value(metric, [_guarded(array) for array in arrays]) for metric in metrics]


def _guarded(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only copy: torch writes to read-only memory, and the labels are those of the bank."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def _value(metric: MetricSpec, arrays: Sequence[NDArray[Any]]) -> float:
    try:
        found: Any = metric(*arrays)
    except MemoryError:
        raise
    except Exception as error:  # the code of another author may raise anything
        raise UserError(
            f"metric {metric.kind} failed with {type(error).__name__}: {first_line(error)}; correct the metric, or "
            "return NaN where it is undefined"
        ) from error
    if getattr(found, "shape", None) == ():  # a scalar of numpy or torch
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
        raise UserError(
            f"metric {metric.kind} must return one number for a set of images, got {type(found).__name__}{shape}: "
            f"{' '.join(repr(found).split())[:60]}; return a float, for example the mean of the values"
        )
    with np.errstate(over="ignore"):
        try:
            value = float(np.float32(found))
        except OverflowError:  # a whole number beyond all floats
            value = math.inf
    return value if math.isfinite(value) else math.nan
