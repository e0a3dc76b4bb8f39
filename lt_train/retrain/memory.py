"""Memory of the fused engine: an estimate per lane, from which pack sizes follow, and recovery when memory runs out.

The estimate depends on the method, the training and the bank's shape, never on the machine, so that a sweep file gives
the same packs everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lt_train.core.errors import OutOfMemory
from lt_train.core.imports import torch
from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.retrain.base import Run, RunResult

if TYPE_CHECKING:
    pass

__all__ = ["fit_in_memory", "is_out_of_memory", "lane_bytes"]


FLOAT_BYTES = 4

OUT_OF_MEMORY = ("can't allocate memory", "std::bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of the plain RuntimeErrors by which torch reports failed allocations outside its CUDA allocator."""

_log = logging.getLogger(__name__)


def lane_bytes(
    method: MethodSpec,
    training: TrainingSpec,
    *,
    num_classes: int,
    feature_dim: int,
    halving_factor: float | None = None,
) -> int:
    """Bytes that one more lane costs `fused.fit`, on the device and in results; an upper estimate.

    The sum of weights, momentum and selected weights (under successive halving also those of the new, smaller stacks
    while the old ones still exist), the returned head, the logits (and hidden layers) of one batch and their gradient,
    and the float64 statistics of the final evaluation.
    """
    head = num_classes * (feature_dim + 1)
    trained = method.head.num_parameters(num_classes, feature_dim) if method.trains else head
    copies = (3 if halving_factor is None else 3 + 3 / halving_factor) if method.trains else 1
    returned = head + trained if method.head.needs_classifier else max(head, trained)
    batch = 5 * training.batch_size * method.head.num_activations(num_classes, feature_dim)
    statistics = 16 * num_classes
    return round(FLOAT_BYTES * (copies * trained + returned + batch + statistics))


def fit_in_memory(
    train: Callable[[Sequence[Run]], list[RunResult]], runs: Sequence[Run], *, splittable: bool
) -> list[RunResult]:
    """`train(runs)`; when memory runs out, the two halves of `runs` one after the other, down to single runs.

    Args:
        train: trains runs together; results in their order.
        runs: at least one.
        splittable: False for runs that successive halving must compare with one another.

    Raises:
        OutOfMemory: memory ran out and `runs` cannot be split.
    """
    try:
        return train(runs)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if len(runs) == 1:
        raise OutOfMemory("memory ran out with a single run; use a smaller batch_size or a machine with more memory")
    if not splittable:
        raise OutOfMemory(
            f"memory ran out with {len(runs)} runs that successive halving must compare; "
            "reduce resources.memory_per_pack or lanes_per_pack"
        )
    # Outside of the handler, whose traceback would keep the first attempt's tensors alive.
    torch.cuda.empty_cache()
    middle = len(runs) // 2
    _log.warning("memory ran out with %d runs in one pack; training two halves one after the other", len(runs))
    return [
        result
        for half in (runs[:middle], runs[middle:])
        for result in fit_in_memory(train, half, splittable=splittable)
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (on the CPU or a CUDA device) or Python could not allocate memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in OUT_OF_MEMORY)
