"""The result of a sweep as a pydantic model: the content of `result.json`.

Accuracies are fractions of 1. An empty split is null. Every mean and difference is an `Estimate`: its value and the
ends of its 95% interval over seeds, which are null for a single run.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.statistics import Array, Comparison, Estimate, Trend, estimate

__all__ = [
    "Accuracies",
    "ExtendedRun",
    "Loma",
    "MethodRow",
    "Protocol",
    "Result",
    "ResultModel",
    "Row",
    "RunCounts",
    "SeedAccuracies",
    "TrialRow",
    "Winner",
]


class ResultModel(BaseModel):
    """Base of every model that is written as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Accuracies(ResultModel):
    """Top-1 accuracy on the test set over all classes and by split: mean over seeds with its 95% interval."""

    acc_all: Estimate | None
    acc_many: Estimate | None
    acc_medium: Estimate | None
    acc_few: Estimate | None

    @classmethod
    def of(cls, values: Array) -> Accuracies:
        """Estimates from test accuracies `[S, 4]`."""
        return cls(**{f"acc_{split}": estimate(values[:, column]) for column, split in enumerate(SPLITS)})

    def by_split(self) -> tuple[Estimate | None, ...]:
        """In the order of `SPLITS`."""
        return (self.acc_all, self.acc_many, self.acc_medium, self.acc_few)

    def values(self) -> dict[str, float | None]:
        """The means by metric, without their intervals."""
        named = zip(SPLITS, self.by_split(), strict=True)
        return {f"acc_{split}": None if one is None else one.value for split, one in named}


class SeedAccuracies(ResultModel):
    """Top-1 test accuracies of one run at its selected epoch; all null if it failed."""

    acc_all: float | None
    acc_many: float | None
    acc_medium: float | None
    acc_few: float | None
    seed: int
    val_acc_all: float | None = Field(description="class-balanced accuracy on the validation set; null without one")
    failure: str | None = Field(description="why the run failed; null for a finished one")


class Loma(ResultModel):
    """Logits Magnitude (paper, Eq. 6) over classes, mean over seeds."""

    mean: float | None
    cv: float | None = Field(description="standard deviation over classes divided by their mean; 0 is balanced")


class Row(ResultModel):
    """One configuration with its results on test."""

    params: dict[str, Any] = Field(description="method with its components, and training, as in a sweep file")
    seeds: list[int]
    best_of: SeedAccuracies = Field(description="the seed that is best by the selection metric")
    mean: Accuracies
    loma: Loma


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
    failed_trials: int
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
        description="minus the stage-1 head (vanilla), in the selection metric, by the same test"
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
    seeds: list[SeedAccuracies]


class Protocol(ResultModel):
    """How trials were ranked; see `selection` in the sweep file."""

    on: Literal["val", "test"]
    epoch: Literal["last", "best"]
    objective: Literal["mean", "best"]
    metric: str
    seeds: int
    finalists: int = Field(description="best trials that ran again on new seeds; if any, results are from those runs")


class RunCounts(ResultModel):
    """Number of runs."""

    finished: int = Field(description="trained to the end")
    stopped: int = Field(default=0, description="stopped early")
    failed: int
    cached: int = Field(description="finished runs that were reused, as duplicates or by a resumed sweep")


class Result(ResultModel):
    """The outcome of one sweep."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    sweep: str = Field(description="name of the sweep")
    spec_fingerprint: str
    bank_fingerprint: str = Field(description="of the feature bank")
    protocol: Protocol
    runs: RunCounts
    trials: list[TrialRow]
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
        description="seconds by activity. Of this call: "
        "total; prepare (data, stage 1, bank); backend (wall clock, with process starts); "
        "search (search algorithm); tracking (in parallel); ledger. Of all calls, summed over workers: train"
    )
    notes: list[str] = Field(description="remarks on the data, and failed runs outside the search")

    def other_baselines(self) -> dict[str, Row]:
        """Baselines whose configuration is not that of a method's row."""
        shown = [row.params for row in self.methods]
        return {name: row for name, row in self.baselines.items() if row.params not in shown}
