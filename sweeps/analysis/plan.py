"""The estimated cost of a sweep."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Size and estimated cost of a sweep. Memory is in bytes, time in seconds on one `device`.

    Attributes:
        methods: trials per method.
        proposal_batches: number of proposal batches.
        extended_runs: runs of extended training, `extended_factor` times as long as the winner, which is assumed to be
            the method with most epochs; 0 if there are none.
        packs: of the whole sweep; `packs_per_batch` of one proposal batch of all methods.
        lanes_per_pack, pack_bytes: of the largest pack.
        run_bytes, pack_bytes: memory beside the bank.
        epochs_saved: share of the search's epochs that early stopping saves.
        stage1_seconds: None if no stage 1 is trained. An existing checkpoint in the storage is not considered.
        feature_seconds: None if the features are given. An existing bank in the storage is not considered.
        backbone, bank: identities; equal for sweeps that share them.
    """

    methods: dict[str, int]
    trials: int
    proposal_batches: int
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
        """All runs."""
        return self.search_runs + self.baseline_runs + self.finalist_runs + self.extended_runs

    @property
    def seconds(self) -> float:
        """Of stage 1, feature extraction and re-training."""
        return (self.stage1_seconds or 0.0) + (self.feature_seconds or 0.0) + self.train_seconds

    def document(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        return asdict(self) | {"runs": self.runs}
