"""How much memory a lane of a fused pack takes: what pack sizes are chosen by, from shapes alone.

It follows from the method, the training and the bank's shape, never from the machine, so that a sweep file makes the
same packs everywhere. Knows specs; measures nothing.
"""

from __future__ import annotations

from lt_train.methods.base import MethodSpec, TrainingSpec

__all__ = ["lane_bytes"]

FLOAT = 4


def lane_bytes(
    method: MethodSpec,
    training: TrainingSpec,
    *,
    num_classes: int,
    feature_dim: int,
    halving_factor: float | None = None,
) -> int:
    """Bytes that one more lane costs `fused.fit`, on the device and in results; an upper estimate.

    Weights, momentum and kept weights, and under successive halving those of the stacks that go on beside those of the
    stacks they come from; the head that is handed out; logits and their gradient of one batch; the statistics of the
    final pass in float64.
    """
    head = num_classes * (feature_dim + 1)
    trained = method.head.trained_numbers(num_classes, feature_dim) if method.trains else head
    copies = (3 if halving_factor is None else 3 + 3 / halving_factor) if method.trains else 1
    handed_out = head + (trained if method.head.needs_classifier else 0)
    batch = 5 * training.batch_size * num_classes
    statistics = 16 * num_classes
    return round(FLOAT * (copies * trained + handed_out + batch + statistics))
