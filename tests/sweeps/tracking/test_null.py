"""Without tracking, a sweep writes its directory and its caches only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sweeps
from sweeps.config.spec import SweepSpec


def test_nothing_else_is_written(small_sweep: Callable[..., SweepSpec]):
    spec = small_sweep(tracking="none", search={"trials": 2})
    result = sweeps.run(spec)
    assert result.winner is not None
    assert {path.name for path in Path(spec.storage).iterdir()} == {"small", "cache"}
