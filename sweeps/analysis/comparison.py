"""`sweeps.compare`: sweeps against a reference sweep, as a typed result that can be written as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from lt_train.core.errors import UserError
from lt_train.metrics import ACCURACIES, Score
from sweeps.analysis.comparability import Comparability, comparability, differing_fields
from sweeps.analysis.labels import NO_WIDTH, role, trial_label
from sweeps.analysis.load import Sweep, TrialRuns, read_sweeps
from sweeps.analysis.result import Accuracies, ResultModel, columns
from sweeps.analysis.statistics import FALSE_DISCOVERY_RATE, Comparison, Test, class_gains, compare_trials, match_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ClassChange",
    "ClassChanges",
    "ComparedSweep",
    "ComparedTrial",
    "SweepComparison",
    "SweepPair",
    "TrialGain",
    "compare",
    "compare_sweeps",
]


class ComparedTrial(ResultModel):
    """A trial with its results on test."""

    label: str = Field(description="such as `los, trial 3`; for a baseline its name")
    searched: dict[str, Any] = Field(description="searched values by dotted path")
    params: dict[str, Any] = Field(description="`method` and, if it trains anything, `training`, with all defaults")
    seeds: list[int]
    mean: Accuracies


class ComparedSweep(ResultModel):
    """One of the sweeps."""

    label: str = Field(description="its name, or its directory if another of the sweeps has the same name")
    path: str
    state: Literal["finished", "unfinished"]
    role: Literal["winner", "leader"] = Field(
        description="what its best trial is called; an unfinished sweep has a leader"
    )
    data: str = Field(description="kind of dataset")
    stage1: str | None
    winner: ComparedTrial | None = Field(description="null if every trial failed, or none is finished")
    baselines: dict[str, ComparedTrial]
    missing: list[str] = Field(description="what could not be read")


class TrialGain(ResultModel):
    """A trial minus the corresponding trial of the reference, on test."""

    what: str = Field(description="`winner`, or the name of a method or baseline")
    ours: str
    reference: str
    gain: dict[str, Comparison] = Field(
        description="by metric; absent where a split is empty or has other classes in the reference"
    )


class ClassChange(ResultModel):
    """One class under both winners. Accuracies are on test, mean over seeds."""

    number: int
    images: int = Field(description="training images")
    reference_images: int
    accuracy: float
    reference_accuracy: float
    gain: float = Field(description="accuracy minus that of the reference")
    p_value: float | None = Field(description="of this class alone, not corrected for the number of classes")
    significant: bool = Field(description="at the false discovery rate, among all classes")


class ClassChanges(ResultModel):
    """Classes on which the winner gained and lost over the winner of the reference."""

    test: Test
    pairs: int = Field(description="seeds compared by the paired test, else 0")
    procedure: Literal["Benjamini-Hochberg"] = "Benjamini-Hochberg"
    false_discovery_rate: float = Field(
        default=FALSE_DISCOVERY_RATE, description="expected share of false discoveries among significant classes"
    )
    expected_by_chance: float | None = Field(
        description="expected number of classes with p < 0.05 if no class differed; null if nothing was tested"
    )
    changes: list[ClassChange] = Field(description="every class with test images, by number")

    def changed(self, sign: int, *, significant: bool = False) -> list[ClassChange]:
        """Classes that gained (`sign` 1) or lost (-1), the largest change first; of equal ones the lower number."""
        found = [one for one in self.changes if sign * one.gain > 1e-9 and (one.significant or not significant)]
        return sorted(found, key=lambda one: -sign * one.gain)


class SweepPair(ResultModel):
    """One sweep against the reference."""

    label: str
    reference: str
    comparable: bool = Field(description="whether differences of accuracies have a meaning")
    cautions: list[str] = Field(description="why they are not comparable, or what limits the comparison")
    metric: str = Field(description="the verdict is based on it: the selection metric, if both have the same")
    metrics: list[Score] = Field(default=[], description="the further metrics that both have")
    winners: TrialGain | None
    methods: list[TrialGain] = Field(description="best trials of the methods, and baselines, that both sweeps have")
    classes: ClassChanges | None


class SweepComparison(ResultModel):
    """What `lt-sweep compare --json` prints. Accuracies are fractions of 1; an empty split is null."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    sweeps: list[ComparedSweep] = Field(description="the reference first")
    specs: dict[str, list[Any]] = Field(
        description="fields that affect results and differ, by dotted path of the sweep file: the value in each sweep, "
        "null if absent; `bank` is the fingerprint of the features"
    )
    pairs: list[SweepPair] = Field(description="every other sweep against the reference")

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of corresponding trials and metric.

        Columns: `sweep`, `reference`, `what` (winner, or the name of a method or baseline), `metric`, `difference` with
        the ends of its 95% interval (`difference_low`, `difference_high`), `p_value`, `test`, `verdict`.
        """
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "sweep": pair.label,
                    "reference": pair.reference,
                    "what": one.what,
                    "metric": metric,
                    **columns("difference", gain.difference),
                    "p_value": gain.p_value,
                    "test": gain.test,
                    "verdict": gain.verdict,
                }
                for pair in self.pairs
                for one in (*([] if pair.winners is None else [pair.winners]), *pair.methods)
                for metric, gain in one.gain.items()
            ]
        )


def compare(*runs: str | os.PathLike[str]) -> SweepComparison:
    """Compare sweeps, finished or not, with the first of them.

    Args:
        runs: open sweeps, directories of sweeps or matrices, or `result.json` files. A matrix stands for those of its
            sweeps that were started. Nothing is trained and no lease is taken.

    Raises:
        UserError: fewer than two sweeps, the same sweep twice, or not a sweep directory.
    """
    sweeps = read_sweeps(runs)
    if len(sweeps) < 2:
        raise UserError(f"a comparison needs at least two sweeps, got {len(sweeps)}")
    return compare_sweeps(sweeps)


def compare_sweeps(sweeps: Sequence[Sweep]) -> SweepComparison:
    """Compare sweeps that were already read; see `compare`."""
    names = [sweep.spec.name for sweep in sweeps]
    labels = [str(one.path) if names.count(one.spec.name) > 1 else one.spec.name for one in sweeps]
    first = (labels[0], sweeps[0])
    return SweepComparison(
        sweeps=[_sweep(label, sweep) for label, sweep in zip(labels, sweeps, strict=True)],
        specs=differing_fields([sweep.spec for sweep in sweeps], [sweep.bank for sweep in sweeps]),
        pairs=[_pair((label, sweep), first) for label, sweep in list(zip(labels, sweeps, strict=True))[1:]],
    )


def _sweep(label: str, sweep: Sweep) -> ComparedSweep:
    return ComparedSweep(
        label=label,
        path=str(sweep.path),
        state=sweep.state,
        role="winner" if role(sweep) == "winner" else "leader",
        data=sweep.spec.dataset.kind,
        stage1=None if sweep.spec.stage1 is None else sweep.spec.stage1.kind,
        winner=None if sweep.winner is None else _trial(sweep.winner),
        baselines={name: _trial(one) for name, one in sweep.finished_baselines.items()},
        missing=list(sweep.missing),
    )


def _trial(runs: TrialRuns) -> ComparedTrial:
    method, training = runs.recipe
    params = {"method": method.model_dump(mode="json")}
    return ComparedTrial(
        label=trial_label(runs),
        searched=runs.trial.params,
        params=params if training is None else params | {"training": training.model_dump(mode="json")},
        seeds=list(runs.seeds),
        mean=Accuracies.of(runs.values, runs.scores),
    )


def _pair(ours: tuple[str, Sweep], reference: tuple[str, Sweep]) -> SweepPair:
    (label, own), (reference_label, theirs) = ours, reference
    common = comparability(ours, reference)
    winners = classes = None
    metric = common.metric
    cautions, methods = list(common.cautions), list[TrialGain]()
    if common.comparable:
        methods = [_gain(name, one, other, common) for name, one, other in _shared(own, theirs)]
        if own.winner is not None and theirs.winner is not None:
            winners = _gain("winner", own.winner, theirs.winner, common)
            classes = _classes(own, theirs, common)
            judged = winners.gain.get(metric)
            same = judged is not None and judged.verdict == "undecided" and judged.test != "none"
            cautions += [NO_WIDTH] * same
    return SweepPair(
        label=label,
        reference=reference_label,
        comparable=common.comparable,
        cautions=cautions,
        metric=metric,
        metrics=[score for score in own.spec.scores[len(ACCURACIES) :] if score.name in common.scores],
        winners=winners,
        methods=methods,
        classes=classes,
    )


def _shared(ours: Sweep, reference: Sweep) -> Iterator[tuple[str, TrialRuns, TrialRuns]]:
    """Methods and baselines of the same name and kind in both sweeps."""
    own, theirs = ({one.trial.candidate: one for one in sweep.methods} for sweep in (ours, reference))
    for name, one in own.items():
        if name in theirs and one.trial.method.kind == theirs[name].trial.method.kind:
            yield name, one, theirs[name]
    for name, one in ours.finished_baselines.items():
        if name in reference.finished_baselines:
            yield f"{name} (baseline)", one, reference.finished_baselines[name]


def _gain(what: str, ours: TrialRuns, theirs: TrialRuns, common: Comparability) -> TrialGain:
    found = compare_trials(ours, theirs, pair=common.same_test)
    gain = {name: one for name, one in found.items() if one is not None and name in common.scores}
    return TrialGain(what=what, ours=trial_label(ours), reference=trial_label(theirs), gain=gain)


def _classes(ours: Sweep, reference: Sweep, common: Comparability) -> ClassChanges | None:
    """The winners by class; None if class sizes or the numbers of test images are unknown."""
    assert ours.winner is not None
    assert reference.winner is not None
    if ours.manifest is None or reference.manifest is None:
        return None
    a, b, paired = match_seeds(ours.winner, reference.winner, _class_accuracy, pair=common.same_test)
    classes = ours.manifest.num_classes
    images = np.minimum(ours.manifest.test_counts, reference.manifest.test_counts)
    found = class_gains(a, b, images, paired=paired)
    accuracy, before = a.mean(axis=0), b.mean(axis=0)
    changes = [
        ClassChange(
            number=k,
            images=ours.manifest.class_counts[k],
            reference_images=reference.manifest.class_counts[k],
            accuracy=float(accuracy[k]),
            reference_accuracy=float(before[k]),
            gain=float(found.gain[k]),
            p_value=None if found.p_value is None else float(found.p_value[k]),
            significant=bool(found.significant[k]),
        )
        for k in range(classes)
        if not math.isnan(found.gain[k])
    ]
    tested = found.p_value is not None
    return ClassChanges(
        test="none" if not tested else "paired" if paired else "welch",
        pairs=len(a) if paired and tested else 0,
        expected_by_chance=0.05 * len(changes) if tested else None,
        changes=changes,
    )


def _class_accuracy(runs: TrialRuns) -> np.ndarray:
    return runs.by_class("class_accuracy")
