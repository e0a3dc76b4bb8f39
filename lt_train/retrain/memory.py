"""How much memory a lane of a fused pack takes: what pack sizes are chosen by, from shapes alone.

It follows from the method, the training and the bank's shape, never from the machine, so that a sweep file makes the
same packs everywhere. Knows specs; measures nothing.
"""

from __future__ import annotations

from lt_train.methods.base import MethodSpec, TrainingSpec

__all__ = ["lane_bytes"]

FLOAT = 4


def lane_bytes(method: MethodSpec, training: TrainingSpec, *, num_classes: int, feature_dim: int) -> int:
    """Bytes that one more lane costs `fused.fit`, on the device and in results; an upper estimate.

    Weights, momentum, kept weights and the copy that is handed out; logits and their gradient of one batch; the
    statistics of the final pass in float64.
    """
    head = num_classes * (feature_dim + 1)
    batch = 5 * training.batch_size * num_classes
    statistics = 16 * num_classes
    return FLOAT * ((4 if method.trains else 2) * head + batch + statistics)
