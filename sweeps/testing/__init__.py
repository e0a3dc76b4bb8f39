"""Conformance checks for search algorithms, early stopping rules, trackers and backends of your own.

Call them from a test of your package, like those of `lt_train.testing`:

    def test_halton() -> None:
        check_algorithm(Halton)

Each check raises an `AssertionError` that says what is wrong. They generate their own data and write to temporary
directories only.
"""

from __future__ import annotations

from sweeps.testing.backends import check_backend
from sweeps.testing.search import check_algorithm, check_early_stopping
from sweeps.testing.trackers import check_tracker

__all__ = ["check_algorithm", "check_backend", "check_early_stopping", "check_tracker"]
