"""Base class of trackers and the events they receive. A tracker shows a sweep to people, for example in MLflow.

The ledger is authoritative; tracking follows it. A crash may repeat any call, and a repeated call must not create
anything twice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from pydantic import Field

from lt_train.core.registry import KindSpec

__all__ = [
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
    """Columns, order and charts of a sweep's runs table.

    Attributes:
        rank: the metric that trials are ranked by, highest first.
        metrics: metric columns, in order.
        searched: parameter columns.
        charted: metrics shown beside the searched parameters in a chart.
        searched_by: chart axes by method; a parameter searched on a logarithmic scale is charted by its logarithm.
    """

    rank: str
    metrics: Sequence[str]
    searched: Sequence[str]
    charted: Sequence[str]
    searched_by: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class DatasetInfo:
    """One part of a sweep's data.

    Attributes:
        name: the dataset's kind.
        part: `training`, `validation` or `test`.
        digest: of the images or features and their labels; parts with equal digests are equal.
        source: the dataset section, as JSON.
        shape: of its features, `(views, rows, D)`.
        class_counts: rows per class.
    """

    name: str
    part: str
    digest: str
    source: Mapping[str, Any]
    shape: tuple[int, ...]
    class_counts: Sequence[int]


@dataclass(frozen=True)
class SweepStarted:
    """Event: a sweep starts or resumes. The content of its parent run.

    Attributes:
        sweep_id: unique to one sweep directory; a resume finds its runs by it.
        name: the sweep's name.
        params: parameters of the parent run.
        started_ms: when the sweep started first; equal at every repetition.
        series: `(step, value)` points by key, such as the stage 1 curve over epochs.
        note: Markdown description of the running sweep.
        data: the parts of its data.
        view: presentation of its runs table; None for the tracker's default.
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
    """Event: all runs of a trial are recorded. The content of one child run.

    Attributes:
        key: unique within the sweep and stable over a resume, for example `search-0007` or `baseline-ce`.
        name: display name, for example `los d=0.98 lr=5e-4`.
        phase: `search`, `baseline`, `finalist` or `extended`.
        params: parameters of the child run.
        metrics: one value by key (`acc_all`, ..., `loma_cv`).
        series: `(step, value)` points by key: values by seed, curves by epoch.
        tables: CSV text by file name: LoMa, regularised std and accuracy by class.
        failed: whether a seed failed.
        finished_ms: when the trial's last run was recorded; equal at every repetition.
        seed_runs: seed and metrics of every seed that did not fail, for trackers that show one run per seed.
        stopped: the epoch after which early stopping ended the trial, to which its metrics belong; else None.
        note: Markdown description.
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

    def seed_events(self) -> list[TrialFinished]:
        """One event for every seed that did not fail, for trackers that show one run per seed."""
        base = replace(self, series={}, tables={}, failed=False, seed_runs=())
        return [
            replace(
                base,
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
    """The winner's classifier, to be registered as a model.

    Attributes:
        classifier: a torch module from features `[N, D]` to logits `[N, K]`.
        feature_dim: D.
        bank: fingerprint of the feature bank, and thereby of the backbone, that it was trained on.
        with_backbone: builds the model from images, backbone included; returns None if there is no backbone.
        about: Markdown description.
    """

    classifier: Any
    feature_dim: int
    bank: str
    with_backbone: Callable[[], ImageModel | None] = lambda: None
    about: str = ""


class Tracker(Protocol):
    """An open connection for one sweep. Not thread-safe."""

    def log_trial(self, trial: TrialFinished) -> None:
        """Show a finished trial; a second call with the same key changes nothing."""

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        """Show the result: metrics and note on the parent run, all files of `artifacts`, the champion as a model."""

    def interrupted(self) -> None:
        """Mark all open runs as stopped; a later resume opens them again."""


class TrackingSpec(KindSpec):
    """Base of all trackers."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """The optional libraries that the tracker needs; see `lt_train.core.imports.require`."""

    flush_timeout: float = Field(
        default=300.0,
        ge=0,
        description="seconds a finished sweep waits for an unreachable tracking server, >= 0; `lt-sweep resume` writes "
        "what could not be written by then",
    )

    @abstractmethod
    def open(self, sweep: SweepStarted, storage: Path) -> Tracker:
        """Create the sweep's parent run, or open an existing one again."""

    def for_sweep(self, name: str) -> Self:
        """The same tracker, with defaults that depend on the name of the sweep written out."""
        return self
