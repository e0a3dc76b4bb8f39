"""The check of metrics.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lt_train.core.errors import UserError
from lt_train.metrics import MetricSpec, evaluate
from lt_train.testing.kinds import check_kind

__all__ = ["check_metric"]


def check_metric(metric: MetricSpec | type[MetricSpec]) -> None:
    """Check a metric on random predictions, on right ones, and where one class is predicted for all images.

    - `check_kind`.
    - It returns one finite number; a fraction, if it is declared to be in percent.
    - The order of images does not change it, and neither does a second call.
    - It does not change its arguments.

    Args:
        metric: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(metric)
    assert isinstance(checked, MetricSpec), f"{type(checked).__name__} is not a metric"
    name, stream, classes = type(checked).__name__, torch.Generator().manual_seed(0), 4
    labels = torch.arange(classes).repeat_interleave(torch.tensor([20, 12, 6, 2]))
    counts, order = torch.tensor([200, 60, 15, 1]), torch.randperm(len(labels), generator=stream)
    right = 20.0 * torch.nn.functional.one_hot(labels, classes)
    random = torch.randn(len(labels), classes, generator=stream)
    cases = {"random predictions": random, "right predictions": right, "one class for all images": 0.0 * right}
    cases["one class for all images"][:, 1] = 200.0

    def value(logits: Tensor, labels: Tensor) -> float:
        try:
            (found,) = evaluate([checked], logits, labels, counts)
        except UserError as error:
            raise AssertionError(f"{name}: {error}") from error
        return found

    for what, logits in cases.items():
        found = value(logits, labels)
        assert math.isfinite(found), f"{name} is not finite for {what}"
        assert not checked.percent or abs(found) <= 1 + 1e-6, (
            f"{name} is declared to be in percent, so it must return a fraction, got {found:g}; or declare "
            "percent: ClassVar[bool] = False"
        )
        assert value(logits, labels) == found, f"{name} returns another value at a second call"
        shuffled = value(logits[order], labels[order])
        assert math.isclose(shuffled, found, rel_tol=1e-5, abs_tol=1e-7), f"{name} depends on the order of images"
    given = [tensor.numpy() for tensor in (random.softmax(-1), random.argmax(-1), labels, counts)]
    passed = [array.copy() for array in given]
    checked(*passed)
    unchanged = all((one == other).all() for one, other in zip(given, passed, strict=True))
    assert unchanged, f"{name} changes its arguments; work on copies"
