"""`none`: no tracking; the ledger and result.json are all there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from sweeps.config.tracking import Champion, SweepStarted, Tracker, TrackingSpec, TrialFinished

__all__ = ["NullTracking"]


class NullTracking(TrackingSpec):
    """Shows nothing anywhere."""

    kind: Literal["none"] = "none"

    def open(self, card: SweepStarted, storage: Path) -> Tracker:
        """A tracker that ignores everything."""
        return _NullTracker()


class _NullTracker:
    def log_trial(self, card: TrialFinished) -> None:
        pass

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        pass

    def interrupted(self) -> None:
        pass
