"""A mean with its 95% interval."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, which one run does not have."""

    mean: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, mean: float | None, ci95: tuple[float, float] | None) -> Estimate | None:
        """From a mean and its interval as a result holds them; None for an empty split."""
        return None if mean is None else cls(mean, *(ci95 or ()))
