"""The result of a sweep as a pydantic model: the content of `result.json`.

Accuracies are fractions in [0, 1]. An empty split and an interval of one seed are null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Accuracies",
    "ExtendedRun",
    "Gain",
    "Intervals",
    "Loma",
    "MethodRow",
    "Protocol",
    "Result",
    "Row",
    "RunCounts",
    "SeedAccuracies",
    "TrialRow",
    "Winner",
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Accuracies(_Model):
    """Top-1 accuracy on the test set, over all classes and by split."""

    acc_all: float | None
    acc_many: float | None
    acc_medium: float | None
    acc_few: float | None


class SeedAccuracies(Accuracies):
    """Accuracies of one run at the epoch that counts; all null when it failed."""

    seed: int
    val_acc_all: float | None = Field(description="class-balanced accuracy on the validation set, if there is one")
    failure: str | None = Field(description="why the run failed; null for a finished one")


class Intervals(_Model):
    """95% intervals of the mean over seeds (Student's t), each `[low, high]`."""

    acc_all: tuple[float, float] | None
    acc_many: tuple[float, float] | None
    acc_medium: tuple[float, float] | None
    acc_few: tuple[float, float] | None


class Loma(_Model):
    """Logits Magnitude (paper, Eq. 6) over classes, mean over seeds; cv is std over mean, 0 is balanced."""

    mean: float | None
    cv: float | None


class Gain(_Model):
    """Winner minus baseline in one metric, paired by seed: mean, 95% interval, two-sided p of a paired t test."""

    mean: float
    ci95: tuple[float, float] | None
    p_value: float | None


class Row(_Model):
    """One setting, reported: the best of its seeds beside their mean and its interval."""

    params: dict[str, Any] = Field(description="the method with its parts, and the training, as a sweep file has them")
    seeds: list[int]
    best_of: SeedAccuracies
    mean: Accuracies
    ci95: Intervals
    loma: Loma


class Winner(Row):
    """The selected trial; `gain` is over each baseline, by metric."""

    method: str = Field(default="", description="the name in `methods` of the method whose trial it is")
    trial: int
    searched: dict[str, Any] = Field(default={}, description="the searched values by dotted path")
    gain: dict[str, dict[str, Gain]]


class MethodRow(Winner):
    """One method at its best: its own winner, and what was spent to find it."""

    objective: float = Field(description="what its winner was selected by: metric, set and objective of the protocol")
    behind: dict[str, Gain] = Field(description="this method minus the first of the table, by metric, paired by seed")
    tied: bool = Field(
        description="the 95% interval of `behind`, in the protocol's metric on test, holds 0: over these seeds there "
        "is no difference from the first, which is tied with itself"
    )
    trials: int = Field(description="settings tried")
    failed_trials: int
    stopped_trials: int = Field(default=0, description="settings that the scheduler stopped early")
    runs: int = Field(description="runs finished, stopped or failed, of trials and finalists")


class ExtendedRun(Row):
    """The winner's setting trained several times as long, at its last epoch. It decides nothing; see `Result`."""

    times: int = Field(description="how many times as long as the winner")
    objective: float = Field(description="mean over seeds on what is selected on: set and metric of the protocol")
    objective_ci95: tuple[float, float] | None
    change: Gain = Field(description="minus the winner at its own last epoch, on what is selected on")
    ends: Literal["falls", "level", "gains", "unclear"] = Field(
        description="falls: the winner stands on a transient; gains: it was not trained to its end; level: the 95% "
        "interval of `change` lies within a point; unclear: so many seeds cannot tell"
    )
    over_start: Gain | None = Field(description="minus the stage-1 head (vanilla), on what is selected on")
    beside_start: Literal["below", "level", "above", "unclear"] | None = Field(
        description="on which side of it this ends, by the same measure"
    )
    behind: dict[str, Gain] = Field(description="minus the winner at its own last epoch, on test, by metric")


class TrialRow(_Model):
    """One trial of the search with all its seeds; `objective` is null when it failed."""

    method: str = Field(default="", description="the name in `methods` of the method it is a trial of")
    number: int = Field(description="counted for each method")
    params: dict[str, Any] = Field(description="the searched values by dotted path")
    objective: float | None
    stopped: int | None = Field(
        default=None, description="epochs after which the scheduler stopped it; its numbers are then of that epoch"
    )
    seeds: list[SeedAccuracies]


class Protocol(_Model):
    """What the numbers were selected on."""

    on: Literal["val", "test"]
    epoch: Literal["last", "best"]
    objective: Literal["mean", "best"]
    metric: str
    seeds: int
    finalists: int = Field(description="trials run again on fresh seeds; the reported numbers are then theirs")


class RunCounts(_Model):
    """Runs: trained to the end, stopped early, failed, and wanted again when done already (duplicates, resumes)."""

    finished: int
    stopped: int = 0
    failed: int
    cached: int


class Result(_Model):
    """The outcome of one sweep, as written to `result.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    sweep: str
    spec_fingerprint: str
    bank_fingerprint: str
    protocol: Protocol
    runs: RunCounts
    trials: list[TrialRow]
    winner: Winner | None = Field(description="the best of all methods; null when every trial, or finalist, failed")
    methods: list[MethodRow] = Field(
        default=[], description="every method's winner, ranked by what is selected on; without those that all failed"
    )
    baselines: dict[str, Row]
    extended: ExtendedRun | None = Field(
        default=None, description="the winner trained longer, to say whether it stands on a transient"
    )
    not_longer: str = Field(default="", description="why there is no such run although one was asked for; else empty")
    seconds: dict[str, float] = Field(
        description="of this call: total; prepare (data, stage 1, bank); backend (wall clock, process starts in it); "
        "search (asking and telling); tracking (beside the others); ledger. Of all calls, summed over workers: train"
    )
    notes: list[str] = Field(description="what to know about the data, and which runs failed that are not the search's")

    def other_baselines(self) -> dict[str, Row]:
        """The baselines whose setting no method's row shows already."""
        shown = [row.params for row in self.methods]
        return {name: row for name, row in self.baselines.items() if row.params not in shown}
