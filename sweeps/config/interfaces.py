"""Interfaces of backends and trackers, and what trackers receive.

A backend trains packs in this process or on a cluster: it takes packs from a `PackSource` until the source is exhausted
and returns every outcome to it. Which packs exist never depends on the backend.

A tracker shows a sweep to people. The ledger is authoritative; tracking follows it. After a crash any call may be
repeated, so calls must be idempotent.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from pydantic import Field

from lt_train.core.registry import KindSpec, Registry

if TYPE_CHECKING:
    import pandas as pd

    from lt_train.backbones.base import BackboneSpec
    from lt_train.core.text import ProgressCallback
    from lt_train.datasets.base import DatasetSpec, ImageData
    from lt_train.features.bank import FeatureBank
    from lt_train.features.shards import Workers
    from lt_train.pretrain.recipes import RecipeSpec
    from lt_train.retrain.base import Pack, RunResult

__all__ = [
    "BACKENDS",
    "TRACKERS",
    "BackboneJob",
    "BackendSpec",
    "Champion",
    "DatasetInfo",
    "ImageModel",
    "PackSource",
    "RunsView",
    "TrackedSweep",
    "TrackedTrial",
    "Tracker",
    "TrackingSpec",
]


class PackSource(Protocol):
    """A queue of packs. A backend calls it from one thread."""

    def next_pack(self) -> Pack | None:
        """The next pack to train, or None while the queue waits for results of packs in flight."""

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        """Record the results of a pack, in the order of its runs, and its training time in seconds."""

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        """Record that a pack returned no results.

        Args:
            pack: the pack.
            why: the reason, in one line.
            own: True if the pack's own process failed, False if its machine did.

        Raises:
            LongtailError: the pack has failed too often; the sweep stops.
        """

    def exhausted(self) -> bool:
        """True when there will be no further pack."""


@dataclass(frozen=True)
class BackboneJob:
    """A backbone to train.

    Attributes:
        data: the images, as loaded by `dataset`.
        dataset, backbone, recipe: the specifications.
        about: further metadata of the checkpoint.
    """

    data: ImageData
    dataset: DatasetSpec
    backbone: BackboneSpec
    recipe: RecipeSpec
    about: Mapping[str, Any]


class BackendSpec(KindSpec):
    """Base of all backends."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """The optional libraries that the backend needs; see `lt_train.core.imports.require`."""

    has_workers: ClassVar[bool] = False
    """Whether the backend has other processes that can train a backbone or extract features."""

    def submission_problem(self) -> str:
        """Why a sweep with this backend cannot be submitted as a job of a cluster; empty if it can."""
        return f"backend must be one that trains on the cluster for a submitted sweep, got {self.kind}; leave it out"

    def trains_elsewhere(self) -> bool:
        """Whether packs are trained on other machines, so that the driver's machine needs no such device."""
        return False

    def train_backbone(
        self, job: BackboneJob, out: Path, *, workers: int, cpus: int, gpus: float, report: ProgressCallback
    ) -> None:
        """Train a backbone in several processes and write its checkpoint to `out`, on this machine.

        Called only if `has_workers` is set.

        Args:
            job: what to train.
            out: path of the checkpoint. The state of an unfinished training is stored next to it, as by
                `lt_train.pretrain.train.train_backbone`.
            workers: number of processes.
            cpus: threads per process.
            gpus: above 0, every process has one GPU.
            report: called with progress in epochs.

        Raises:
            UserError: too few resources, or training refuses the job.
            LongtailError: training failed; its last state is kept and a second call resumes from it.
        """
        raise AssertionError("a sweep with stage1_workers on a backend that has none is refused")

    def extractors(self, count: int, *, cpus: int, gpus: float) -> AbstractContextManager[Workers]:
        """`count` processes that extract features, for the duration of the block. Called only if `has_workers` is set.

        Raises:
            UserError: they need more resources than there are.
        """
        raise AssertionError("a sweep with extract_workers on a backend that has none is refused")

    @abstractmethod
    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """Train packs from `source` until it is exhausted, with `cpus` threads and `gpus` GPUs per pack."""


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
class TrackedSweep:
    """What a tracker shows of a sweep that starts or resumes: the content of its parent run.

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
class TrackedTrial:
    """What a tracker shows of a trial whose runs are all recorded: the content of one child run.

    Attributes:
        key: unique within the sweep and stable over a resume, for example `search-0007` or `baseline-ce`.
        name: display name, for example `los d=0.98 lr=5e-4`.
        phase: `search`, `baseline`, `finalist` or `extended`.
        params: parameters of the child run.
        metrics: one value by key (`acc_all`, ..., `loma_cv`).
        series: `(step, value)` points by key: values by seed, curves by epoch.
        tables: DataFrames by name; `per_class` has the columns `class`, `accuracy`, `loma` and `regularised_std`.
        failed: whether a seed failed.
        finished_ms: when the trial's last run was recorded; equal at every repetition.
        seed_runs: seed and metrics of every seed that did not fail, for trackers that show one run per seed.
        logarithms: `log10_<name>` of parameters that are searched on a logarithmic scale, for charts without one.
        stopped: the epoch after which early stopping ended the trial, to which its metrics belong; else None.
        note: Markdown description.
    """

    key: str
    name: str
    phase: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    series: Mapping[str, list[tuple[int, float]]]
    tables: Mapping[str, pd.DataFrame]
    failed: bool
    finished_ms: int
    seed_runs: Sequence[tuple[int, Mapping[str, float]]] = ()
    logarithms: Mapping[str, float] = field(default_factory=dict)
    stopped: int | None = None
    note: str = ""

    def seed_trials(self) -> list[TrackedTrial]:
        """The seeds that did not fail, one by one, for trackers that show one run per seed."""
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

    def log_trial(self, trial: TrackedTrial) -> None:
        """Show a finished trial; a second call with the same key changes nothing."""

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        """Show the result: metrics and note on the parent run, all files of `artifacts`, the champion as a model."""

    def interrupted(self) -> None:
        """Mark all open runs as stopped; a later resume opens them again."""


class TrackingSpec(KindSpec):
    """Base of all trackers."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """The optional libraries that the tracker needs; see `lt_train.core.imports.require`."""

    own_files: ClassVar[str] = ""
    """Prefix of its files in the storage, with which the name of a sweep must not start; empty if it has none."""

    flush_timeout: float = Field(
        default=300.0,
        ge=0,
        description="seconds a finished sweep waits for an unreachable tracking server, >= 0; `lt-sweep resume` writes "
        "what could not be written by then",
    )

    def prepare(self, storage: Path) -> None:
        """Set what the library reads from the environment; called once, before `open` is called in another thread."""
        return None

    @abstractmethod
    def open(self, sweep: TrackedSweep, storage: Path) -> Tracker:
        """Create the sweep's parent run, or open an existing one again."""

    def submission_problem(self) -> str:
        """Why a sweep with this tracker cannot be submitted as a job of a cluster; empty if it can."""
        return ""

    def for_sweep(self, name: str) -> Self:
        """The same tracker, with defaults that depend on the name of the sweep written out."""
        return self


BACKENDS = Registry("backends", BackendSpec, "sweeps.backends", modules=["inline", "ray"])  # type: ignore[type-abstract]
"""The plugin group of backends."""

TRACKERS = Registry("trackers", TrackingSpec, "sweeps.tracking", modules=["null", "mlflow", "wandb"])  # type: ignore[type-abstract]
"""The plugin group of trackers."""
