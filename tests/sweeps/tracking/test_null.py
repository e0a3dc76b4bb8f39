"""No tracking: a sweep leaves its ledger and its result, and nothing else beside its caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sweeps
from sweeps.config.spec import SweepSpec


def test_nothing_is_tracked_anywhere(small_sweep: Callable[..., SweepSpec]):
    spec = small_sweep(tracking="none", search={"trials": 2})
    result = sweeps.run(spec)
    assert result.winner is not None
    assert {path.name for path in Path(spec.storage).iterdir()} == {"small", "cache"}
