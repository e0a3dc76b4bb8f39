"""Conformance checks for kinds of your own: `check_method`, `check_head`, `check_dataset` and others.

Call them from a test of your package:

    def test_poly() -> None:
        check_method(Poly)

Each check raises an `AssertionError` that says what is wrong. They need no data, no GPU and a few seconds.
`sweeps.testing` has the checks for search algorithms, trackers and backends.
"""

from __future__ import annotations

from lt_train.testing.backbones import check_backbone
from lt_train.testing.datasets import check_dataset
from lt_train.testing.heads import check_head
from lt_train.testing.kinds import check_kind
from lt_train.testing.methods import check_method
from lt_train.testing.metrics import check_metric
from lt_train.testing.parts import check_constraint, check_post_hoc, check_sampler

__all__ = [
    "check_backbone",
    "check_constraint",
    "check_dataset",
    "check_head",
    "check_kind",
    "check_method",
    "check_metric",
    "check_post_hoc",
    "check_sampler",
]
