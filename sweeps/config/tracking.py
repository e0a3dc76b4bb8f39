"""What tracking is: a place where people look at finished trials. The ledger is the truth; tracking follows it.

A tracking kind is one file in this folder with one `TrackingSpec` subclass. Every call may be repeated after a crash
and must not double anything.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from lt_train.core.registry import KindSpec, Registry

__all__ = [
    "TRACKERS",
    "Champion",
    "DatasetInfo",
    "ImageModel",
    "RunsView",
    "SweepStarted",
    "Tracker",
    "TrackingSpec",
    "TrialFinished",
]


@dataclass(frozen=True)
class RunsView:
    """What a person wants to see of a sweep's runs beside one another.

    Attributes:
        rank: the metric that trials are ranked by, the highest first.
        metrics: columns of the table, in order.
        searched: parameters that are columns of the table.
        charted: metrics beside the searched parameters in a chart.
        searched_by: what is searched, by method, as a chart shows it: logarithms where the search is logarithmic.
    """

    rank: str
    metrics: Sequence[str]
    searched: Sequence[str]
    charted: Sequence[str]
    searched_by: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class DatasetInfo:
    """One part of the data that a sweep works on: train, val or test.

    Attributes:
        part: `training`, `validation` or `test`.
        digest: of the images or features and their labels; parts with one digest are the same.
        source: JSON of the dataset section.
        shape: of its features, `(views, rows, D)`.
        class_counts: rows a class.
    """

    name: str
    part: str
    digest: str
    source: Mapping[str, Any]
    shape: tuple[int, ...]
    class_counts: Sequence[int]


@dataclass(frozen=True)
class SweepStarted:
    """What the parent run shows.

    Attributes:
        sweep_id: unique to one sweep directory, and what a resume looks for.
        series: `(step, value)` points a key, such as the curve of stage 1 over its epochs.
        started_ms: when the sweep began; the same at every repetition.
        note: what a person reads of the sweep while it runs, Markdown.
        data: what it works on.
        view: how its runs are best looked at; None: as they come.
    """

    sweep_id: str
    name: str
    params: Mapping[str, Any]
    started_ms: int
    series: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    note: str = ""
    data: Sequence[DatasetInfo] = ()
    view: RunsView | None = None


@dataclass(frozen=True)
class TrialFinished:
    """What one child run shows.

    Attributes:
        key: unique within the sweep and the same after a resume, for example `trial-0007` or `baseline-ce`.
        name: what a person reads, for example `los d=0.98 lr=5e-4`.
        metrics: one number a key (`acc_all`, ..., `loma_cv`).
        series: `(step, value)` points a key: per-seed values over seeds, curves over epochs.
        tables: CSV text by file name: LoMa, regularised std and accuracy by class.
        finished_ms: when the trial's last run was recorded; the same at every repetition.
        seed_runs: metrics of every sound seed, for whoever shows them as runs of their own.
        stopped: None, or the epochs after which a scheduler stopped the trial; the metrics are then of that epoch.
        note: what a person reads of the trial, Markdown.
    """

    key: str
    name: str
    phase: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    series: Mapping[str, list[tuple[int, float]]]
    tables: Mapping[str, str]
    failed: bool
    finished_ms: int
    seed_runs: Sequence[tuple[int, Mapping[str, float]]] = ()
    stopped: int | None = None
    note: str = ""

    def of_seeds(self) -> list[TrialFinished]:
        """A card for every sound seed, for whoever shows seeds as runs of their own."""
        bare = replace(self, series={}, tables={}, failed=False, seed_runs=())
        return [
            replace(
                bare,
                key=f"{self.key}/{seed}",
                name=f"{self.name} seed {seed}",
                params={**self.params, "seed": seed},
                metrics=metrics,
            )
            for seed, metrics in self.seed_runs
        ]


@dataclass(frozen=True)
class ImageModel:
    """A torch module from images, uint8 `[N, H, W, C]`, to logits `[N, K]`; `shape` is `(H, W, C)`."""

    module: Any
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Champion:
    """The winner's classifier, to become a model.

    Attributes:
        classifier: a torch module from features `[N, D]` to logits `[N, K]`.
        feature_dim: D.
        bank: fingerprint of the features it was trained on, and so of the backbone that made them.
        with_backbone: makes the same from images, backbone and all; None where they cannot be had.
        about: what a person reads of it, Markdown.
    """

    classifier: Any
    feature_dim: int
    bank: str
    with_backbone: Callable[[], ImageModel | None] = lambda: None
    about: str = ""


class Tracker(Protocol):
    """One sweep's open tracking. Not thread-safe; used by one writer."""

    def log_trial(self, card: TrialFinished) -> None:
        """Show a finished trial, once, however often this is called with the same key."""

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        """Show the result: metrics and note on the parent run, every file of `artifacts`, the champion as a model."""

    def interrupted(self) -> None:
        """Mark the parent run, and what else is open, as stopped; a later resume re-opens it."""


class TrackingSpec(KindSpec):
    """Base of every tracking kind."""

    flush_timeout: float = Field(
        default=300.0,
        ge=0,
        description="seconds that a finished sweep waits for a tracking server that is away, >= 0; what it could not "
        "write then, `lt-sweep resume` writes",
    )

    @abstractmethod
    def open(self, card: SweepStarted, storage: Path) -> Tracker:
        """Start the sweep's parent run or re-attach to it."""


TRACKERS = Registry("sweeps.tracking", TrackingSpec, modules=("null", "mlflow"))  # type: ignore[type-abstract]
"""The trackers."""
