"""Tracker `none`: a sweep leaves its ledger and result.json only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from sweeps.config.interfaces import TRACKERS, Champion, TrackedSweep, TrackedTrial, Tracker, TrackingSpec

__all__ = ["NullTracking"]


@TRACKERS.register
class NullTracking(TrackingSpec):
    """No tracking."""

    kind: Literal["none"] = "none"

    def open(self, sweep: TrackedSweep, storage: Path) -> Tracker:
        """A tracker that ignores all calls."""
        return _NullTracker()


class _NullTracker:
    def log_trial(self, trial: TrackedTrial) -> None:
        pass

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        pass

    def interrupted(self) -> None:
        pass
