"""Data models of `result.json` and of the plan.

Accuracies are fractions of 1. An empty split is null. Every mean and difference is an `Estimate`: its value and the
ends of its 95% interval over seeds, which are null for a single run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lt_train.metrics import ACCURACIES, Score
from sweeps.analysis.statistics import Array, Comparison, Estimate, Trend, estimate

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Accuracies",
    "ExtendedRun",
    "Loma",
    "MethodRow",
    "Plan",
    "Protocol",
    "Result",
    "ResultModel",
    "Row",
    "RunCounts",
    "SeedAccuracies",
    "TrialRow",
    "Winner",
    "columns",
]


def in_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the name of their score, as fields: an accuracy has a field of its own, metrics share one."""
    own = {score.name for score in ACCURACIES}
    accuracies = {name: value for name, value in values.items() if name in own}
    return {**accuracies, "metrics": {name: value for name, value in values.items() if name not in own}}


class ResultModel(BaseModel):
    """Base of every model that is written as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Accuracies(ResultModel):
    """Top-1 accuracy on test over all classes and by split, and further metrics: mean over seeds, with 95% interval."""

    acc_all: Estimate | None = Field(description="over all test images")
    acc_many: Estimate | None = Field(description="over the images of classes with more than 100 training images")
    acc_medium: Estimate | None = Field(description="of classes with 20 to 100 training images")
    acc_few: Estimate | None = Field(description="of classes with fewer than 20 training images")
    metrics: dict[str, Estimate | None] = Field(
        default={}, description="the sweep's further metrics by kind; null where undefined"
    )

    @classmethod
    def of(cls, values: Array, scores: Sequence[Score] = ACCURACIES) -> Accuracies:
        """Estimates from scores on test `[S, C]`, whose columns are `scores`."""
        return cls(**in_fields({score.name: estimate(values[:, column]) for column, score in enumerate(scores)}))

    def by_split(self) -> tuple[Estimate | None, ...]:
        """The accuracies in the order of `SPLITS`."""
        return (self.acc_all, self.acc_many, self.acc_medium, self.acc_few)

    def by_score(self) -> tuple[Estimate | None, ...]:
        """The accuracies, then the further metrics."""
        return (*self.by_split(), *self.metrics.values())

    def of_score(self, name: str) -> Estimate | None:
        """One accuracy or metric by name; None if it is undefined or was not computed."""
        found: Estimate | None = self.metrics[name] if name in self.metrics else getattr(self, name, None)
        return found

    def values(self) -> dict[str, float | None]:
        """The means by metric, without their intervals."""
        names = [*(score.name for score in ACCURACIES), *self.metrics]
        return {name: None if one is None else one.value for name, one in zip(names, self.by_score(), strict=True)}

    def columns(self) -> dict[str, float]:
        """Three columns of a table per metric: the mean, and the ends of its interval as `_low` and `_high`."""
        names = (*(score.name for score in ACCURACIES), *self.metrics)
        named = zip(names, self.by_score(), strict=True)
        return {column: value for name, one in named for column, value in columns(name, one).items()}


def columns(name: str, one: Estimate | None) -> dict[str, float]:
    """An estimate as three columns of a table: `name`, `name_low`, `name_high`; NaN where there is no value."""
    values = (None, None, None) if one is None else (one.value, one.low, one.high)
    known = (math.nan if value is None else value for value in values)
    return dict(zip((name, f"{name}_low", f"{name}_high"), known, strict=True))


class SeedAccuracies(ResultModel):
    """Top-1 test accuracies, and further metrics, of one run at its selected epoch; all null if it failed."""

    acc_all: float | None = Field(description="over all test images")
    acc_many: float | None = Field(description="over the images of classes with more than 100 training images")
    acc_medium: float | None = Field(description="of classes with 20 to 100 training images")
    acc_few: float | None = Field(description="of classes with fewer than 20 training images")
    metrics: dict[str, float | None] = Field(
        default={}, description="the sweep's further metrics by kind; null where undefined"
    )
    seed: int = Field(description="of batch order and random initial weights")
    val_acc_all: float | None = Field(description="class-balanced accuracy on the validation set; null without one")
    failure: str | None = Field(description="why the run failed; null for a finished one")

    def values(self) -> dict[str, float | None]:
        """The accuracies, then the further metrics, by name."""
        return {**{score.name: getattr(self, score.name) for score in ACCURACIES}, **self.metrics}


class Loma(ResultModel):
    """Logits Magnitude (paper, Eq. 6) over classes, mean over seeds."""

    mean: float | None = Field(description="mean over classes")
    cv: float | None = Field(description="standard deviation over classes divided by their mean; 0 is balanced")


class Row(ResultModel):
    """One configuration with its results on test."""

    params: dict[str, Any] = Field(description="method with its components, and training, as in a sweep file")
    seeds: list[int] = Field(description="seeds of its runs")
    best_of: SeedAccuracies = Field(description="the seed that is best by the selection metric")
    mean: Accuracies = Field(description="accuracy on test")
    loma: Loma = Field(description="Logits Magnitude on test")

    def columns(self) -> dict[str, Any]:
        """Its numbers as columns of a table."""
        best = {"best_of_acc_all": self.best_of.acc_all}
        return self.mean.columns() | best | {"loma_mean": self.loma.mean, "loma_cv": self.loma.cv}


class Winner(Row):
    """The selected trial."""

    method: str = Field(default="", description="name in `methods`")
    trial: int = Field(description="number among the trials of its method")
    searched: dict[str, Any] = Field(default={}, description="searched values by dotted path")
    gain: dict[str, dict[str, Comparison]] = Field(
        description="minus each baseline, by metric, paired by seed; an empty split is absent"
    )


class MethodRow(Winner):
    """The best trial of one method, and what was spent to find it."""

    objective: float = Field(description="value it was selected by: metric, set and objective of the protocol")
    behind: dict[str, Comparison] = Field(description="minus the best method, on test, by metric, paired by seed")
    tied: bool = Field(description="whether `behind` is tied in the protocol's metric; the best is tied with itself")
    trials: int = Field(description="trials of this method")
    failed_trials: int = Field(description="trials with a failed run")
    stopped_trials: int = Field(default=0, description="trials that the early stopping rule stopped")
    runs: int = Field(description="runs finished, stopped or failed, of trials and finalists")


class ExtendedRun(Row):
    """The winner's configuration trained several times as long, at its last epoch. It does not affect selection."""

    times: int = Field(description="training length as a multiple of the winner's")
    objective: Estimate = Field(description="in the selection metric, on the set used for selection")
    change: Comparison = Field(
        description="minus the winner at its own last epoch, in the selection metric; tied: the 95% interval lies "
        "within one point"
    )
    trend: Trend = Field(description="verdict of `change`; improving or declining: the winner has not converged")
    over_start: Comparison | None = Field(
        description="minus the stage-1 head, in the selection metric, by the same test"
    )
    test_change: dict[str, Comparison] = Field(description="minus the winner at its own last epoch, on test, by metric")


class TrialRow(ResultModel):
    """One trial of the search with all its seeds."""

    method: str = Field(default="", description="name in `methods`")
    number: int = Field(description="counted for each method separately")
    params: dict[str, Any] = Field(description="searched values by dotted path")
    objective: float | None = Field(description="null if the trial failed")
    stopped: int | None = Field(
        default=None, description="epochs after which it was stopped early; its values are those of that epoch"
    )
    seeds: list[SeedAccuracies] = Field(description="its runs, by seed")


class Protocol(ResultModel):
    """How trials were ranked; see `selection` in the sweep file."""

    on: Literal["val", "test"] = Field(description="data on which the metric is computed")
    epoch: Literal["last", "best"] = Field(description="epoch at which a run is evaluated")
    objective: Literal["mean", "best"] = Field(description="how the seeds of a trial are combined")
    metric: str = Field(description="such as acc_all, or the kind of a further metric")
    seeds: int = Field(description="runs per trial")
    finalists: int = Field(description="best trials that ran again on new seeds; if any, results are from those runs")


class RunCounts(ResultModel):
    """Number of runs."""

    finished: int = Field(description="trained to the end")
    stopped: int = Field(default=0, description="stopped early")
    failed: int = Field(description="ended without a result")
    shared: int = Field(description="runs that were not trained, because an earlier trial has the same values")


class Result(ResultModel):
    """The outcome of one sweep."""

    schema_: Literal[1] = Field(default=1, alias="schema", description="version of this format")
    sweep: str = Field(description="name of the sweep")
    spec_fingerprint: str = Field(description="sha256 of everything in the sweep file that influences results")
    bank_fingerprint: str = Field(description="of the feature bank")
    protocol: Protocol = Field(description="how trials were ranked")
    metrics: list[Score] = Field(default=[], description="the further metrics of the sweep")
    runs: RunCounts = Field(description="numbers of runs")
    trials: list[TrialRow] = Field(description="trials of the search, by method, then by number")
    winner: Winner | None = Field(description="best of all methods; null if every trial, or every finalist, failed")
    methods: list[MethodRow] = Field(
        default=[], description="best trial of each method, ranked by the selection metric; failed methods are absent"
    )
    baselines: dict[str, Row] = Field(description="by name; failed ones are absent")
    extended: ExtendedRun | None = Field(default=None, description="extended training of the winner")
    extended_skipped: str = Field(
        default="", description="why there is no extended run although one was requested; else empty"
    )
    seconds: dict[str, float] = Field(
        description="seconds by activity. Of the call that completed the sweep: total; prepare (data, stage 1, "
        "bank); backend (wall clock, with process starts); search (search algorithm); listeners (progress and "
        "callbacks until the last run; artifacts are not included); ledger. Of all calls, summed over workers: train"
    )
    notes: list[str] = Field(description="remarks on the data, and failed runs outside the search")

    @property
    def scores(self) -> tuple[Score, ...]:
        """The accuracies and the further metrics."""
        return (*ACCURACIES, *self.metrics)

    def to_frame(self) -> pd.DataFrame:
        """One row per method, best first, and per baseline.

        Columns: `method`, `role` (winner, method, baseline), `number` of the trial, searched values by dotted path,
        mean accuracies and metrics on test with the ends of their 95% intervals (`acc_all`, `acc_all_low`,
        `acc_all_high`, ...), `best_of_acc_all`, `objective`, `loma_mean`, `loma_cv`.
        """
        import pandas as pd

        rows = []
        for rank, one in enumerate(self.methods):
            about = {"method": one.method, "role": "method" if rank else "winner", "number": one.trial, **one.searched}
            rows.append(about | one.columns() | {"objective": one.objective})
        for name, baseline in self.baselines.items():
            rows.append({"method": name, "role": "baseline"} | baseline.columns())
        frame = pd.DataFrame(rows)
        return frame.astype({"number": "Int64"}) if "number" in frame else frame

    def other_baselines(self) -> dict[str, Row]:
        """Baselines whose configuration is not that of a method's row."""
        shown = [row.params for row in self.methods]
        return {name: row for name, row in self.baselines.items() if row.params not in shown}


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
