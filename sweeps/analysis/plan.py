"""What a sweep will cost, as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What a sweep amounts to. Memory in bytes; time in seconds of one `device`, estimated.

    `methods` are the trials of each. Packs, lanes and bytes are those of the largest pack; `packs_per_batch` those
    of all methods together. `extended_runs` are `extended_factor` as long as the winner's, which is taken to be the method
    with most epochs; 0 where there are none. `epochs_saved` is the share of the search's epochs that a scheduler saves.
    `stage1_seconds` are null where nothing is to be trained first, `feature_seconds` where features are brought; both
    count what the storage may have already. `backbone` and `bank` are equal for sweeps that share them.
    """

    methods: dict[str, int]
    trials: int
    batches: int
    seeds: int
    search_runs: int
    baseline_runs: int
    finalist_runs: int
    extended_runs: int
    extended_factor: int
    packs: int
    packs_per_batch: int
    lanes_per_pack: int
    pack_sizes: str
    run_bytes: int
    pack_bytes: int
    train_images: int
    val_images: int
    test_images: int
    classes: int
    feature_dim: int
    views: int
    bank_bytes: int
    epochs_saved: float
    device: str
    stage1_seconds: float | None
    feature_seconds: float | None
    train_seconds: float
    backbone: str
    bank: str
    notes: tuple[str, ...]

    @property
    def runs(self) -> int:
        """Runs in all."""
        return self.search_runs + self.baseline_runs + self.finalist_runs + self.extended_runs

    @property
    def seconds(self) -> float:
        """Of all three phases."""
        return (self.stage1_seconds or 0.0) + (self.feature_seconds or 0.0) + self.train_seconds

    def document(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        return asdict(self) | {"runs": self.runs}
