"""`sweeps.compare`: sweeps side by side, in what they differ and by how much, as a typed result that JSON can hold.

The first is the reference, and each of the others is held against it. What two sweeps cannot be compared in is said and
left out. Knows sweeps as read and the judgements; draws and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lt_train.core.errors import UserError
from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.class_gains import LEVEL, class_gains
from sweeps.analysis.comparability import Ground, common_ground
from sweeps.analysis.estimate import Estimate
from sweeps.analysis.labels import NO_WIDTH, called, role
from sweeps.analysis.load import Sweep, TrialRuns, read_sweeps
from sweeps.analysis.result import Accuracies, Gain, Intervals
from sweeps.analysis.spec_differences import leaves_that_differ
from sweeps.analysis.statistics import difference, estimate, matched

__all__ = ["ClassChange", "ClassChanges", "Comparison", "Pair", "Shown", "Side", "TrialGain", "compare", "compared"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Shown(_Model):
    """A setting of a sweep as it is reported: mean over seeds on test, with its 95% interval."""

    called: str = Field(description="such as `los, trial 3`; a baseline by its name")
    searched: dict[str, Any] = Field(description="the searched values by dotted path")
    params: dict[str, Any] = Field(description="`method` and, where it trains anything, `training`, with every default")
    seeds: list[int]
    mean: Accuracies
    ci95: Intervals


class Side(_Model):
    """One of the sweeps."""

    label: str = Field(description="its name; its directory where another of the sweeps has that name")
    path: str
    state: Literal["finished", "unfinished"]
    role: Literal["winner", "leader"] = Field(
        description="what its first setting is: nobody has won what is unfinished"
    )
    data: str = Field(description="kind of dataset")
    stage1: str | None
    winner: Shown | None = Field(description="null where every trial failed, or none is finished")
    baselines: dict[str, Shown]
    missing: list[str] = Field(description="what could not be read of it")


class TrialGain(_Model):
    """A setting minus that of the reference, on test."""

    what: str = Field(description="`winner`, the name of a method, or that of a baseline")
    ours: str
    reference: str
    gain: dict[str, Gain] = Field(
        description="by metric; a metric is absent where a split is empty or of other classes, the interval is null "
        "where one run says nothing of its noise"
    )
    test: Literal["paired", "welch", "none"] = Field(description="t test: paired by shared seeds, or Welch's")
    pairs: int = Field(description="seeds compared; 0 where they are not paired")
    verdict: Literal["better", "tied", "worse", "no spread", "one run"] = Field(
        description="by the interval in the metric judged by: tied where it holds 0, one run where there is none, no "
        "spread where all seeds differ by the same images, so that no test can say more than the mean"
    )


class ClassChange(_Model):
    """A class under both winners: accuracies on test, mean over seeds."""

    number: int
    images: int = Field(description="training images")
    reference_images: int
    accuracy: float
    reference_accuracy: float
    gain: float = Field(description="accuracy minus the reference's")
    p_value: float | None = Field(description="of this class alone, not corrected for how many there are")
    sure: bool = Field(description="differs beyond luck among all classes tested")


class ClassChanges(_Model):
    """Which classes the winner gained and lost over the reference's winner."""

    test: Literal["paired", "welch", "none"]
    pairs: int
    procedure: Literal["Benjamini-Hochberg"] = "Benjamini-Hochberg"
    false_discovery_rate: float = Field(
        default=LEVEL,
        description="of the classes marked sure, the share that differs by luck alone, on average, at most",
    )
    by_luck: float | None = Field(
        description="how many of as many equal classes would have p < 0.05 on average; null where nothing was tested"
    )
    changes: list[ClassChange] = Field(description="every class with test images, by number")

    def changed(self, sign: int, *, sure: bool = False) -> list[ClassChange]:
        """Those that gained (`sign` 1) or lost (-1), the most first; ties: the lower number."""
        found = [one for one in self.changes if sign * one.gain > 1e-9 and (one.sure or not sure)]
        return sorted(found, key=lambda one: -sign * one.gain)


class Pair(_Model):
    """One sweep against the reference."""

    label: str
    reference: str
    comparable: bool = Field(description="whether any difference of accuracies says something")
    cautions: list[str] = Field(description="why not, or what to hold against the differences")
    metric: str = Field(description="what is judged by: the reference's selection metric, where both have it")
    winners: TrialGain | None
    methods: list[TrialGain] = Field(description="each method, at its best, and each baseline that both have")
    classes: ClassChanges | None


class Comparison(_Model):
    """What `lt-sweep compare --json` prints. Accuracies are fractions of 1; an empty split is null."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    sweeps: list[Side] = Field(description="the reference first")
    specs: dict[str, list[Any]] = Field(
        description="what decides results and is not the same in all: by dotted path of the sweep file, and `bank`, "
        "the fingerprint of the features, what each sweep has; null where it has nothing there"
    )
    pairs: list[Pair] = Field(description="every other sweep against the reference")


def compare(*runs: str | Path) -> Comparison:
    """Compare sweeps, finished or not, with the first of them.

    Args:
        runs: directories of sweeps or matrices, or a sweep's `result.json`. A matrix stands for those of its sweeps
            that have begun. Nothing is trained, no lease is taken.

    Raises:
        UserError: they are fewer than two, one is given twice, or is no sweep directory.
    """
    sweeps = read_sweeps(runs)
    if len(sweeps) < 2:
        raise UserError(f"a comparison is of at least two sweeps, got {len(sweeps)}")
    return compared(sweeps)


def compared(sweeps: Sequence[Sweep]) -> Comparison:
    """As `compare`, of sweeps that were read already."""
    names = [sweep.spec.name for sweep in sweeps]
    labels = [str(one.path) if names.count(one.spec.name) > 1 else one.spec.name for one in sweeps]
    return Comparison(
        sweeps=[_side(label, sweep) for label, sweep in zip(labels, sweeps, strict=True)],
        specs=leaves_that_differ([sweep.spec for sweep in sweeps], [sweep.bank for sweep in sweeps]),
        pairs=[
            _pair(sweep, sweeps[0], common_ground((label, sweep), (labels[0], sweeps[0])), label, labels[0])
            for label, sweep in list(zip(labels, sweeps, strict=True))[1:]
        ],
    )


def _side(label: str, sweep: Sweep) -> Side:
    return Side(
        label=label,
        path=str(sweep.path),
        state=sweep.state,
        role=role(sweep),
        data=sweep.spec.dataset.kind,
        stage1=None if sweep.spec.stage1 is None else sweep.spec.stage1.kind,
        winner=None if sweep.winner is None else _shown(sweep, sweep.winner),
        baselines={name: _shown(sweep, one) for name, one in sweep.sound_baselines.items()},
        missing=list(sweep.missing),
    )


def _shown(sweep: Sweep, setting: TrialRuns) -> Shown:
    numbers = {f"acc_{split}": estimate(setting.values[:, place]) for place, split in enumerate(SPLITS)}
    method, training = setting.recipe
    params = {"method": method.model_dump(mode="json")}
    return Shown(
        called=called(sweep, setting),
        searched=setting.trial.params,
        params=params if training is None else params | {"training": training.model_dump(mode="json")},
        seeds=list(setting.seeds),
        mean=Accuracies(**{name: None if one is None else one.mean for name, one in numbers.items()}),
        ci95=Intervals(**{name: None if one is None else _ends(one) for name, one in numbers.items()}),
    )


def _ends(one: Estimate) -> tuple[float, float] | None:
    return None if one.low is None or one.high is None else (one.low, one.high)


def _pair(ours: Sweep, reference: Sweep, ground: Ground, label: str, reference_label: str) -> Pair:
    winners = classes = None
    cautions, methods = list(ground.cautions), list[TrialGain]()
    if ground.comparable:
        methods = [_gain(name, one, other, (ours, reference), ground) for name, one, other in _both(ours, reference)]
        if ours.winner is not None and reference.winner is not None:
            winners = _gain("winner", ours.winner, reference.winner, (ours, reference), ground)
            classes = _classes(ours, reference, ground)
            cautions += [NO_WIDTH] * (winners.verdict == "no spread")
    return Pair(
        label=label,
        reference=reference_label,
        comparable=ground.comparable,
        cautions=cautions,
        metric=f"acc_{SPLITS[ground.column]}",
        winners=winners,
        methods=methods,
        classes=classes,
    )


def _both(ours: Sweep, reference: Sweep) -> Iterator[tuple[str, TrialRuns, TrialRuns]]:
    """What both have: methods that were searched by their names, baselines by theirs; like with like."""
    own, theirs = ({one.trial.candidate: one for one in sweep.methods} for sweep in (ours, reference))
    for name, one in own.items():
        if name in theirs and one.trial.method.kind == theirs[name].trial.method.kind:
            yield name, one, theirs[name]
    for name, one in ours.sound_baselines.items():
        if name in reference.sound_baselines:
            yield f"{name} (baseline)", one, reference.sound_baselines[name]


def _gain(what: str, ours: TrialRuns, theirs: TrialRuns, sweeps: tuple[Sweep, Sweep], ground: Ground) -> TrialGain:
    found = difference(ours, theirs, ground.column, pair=ground.same_test)
    gain = {
        f"acc_{split}": Gain(mean=one.mean, ci95=_ends(one), p_value=p_value)
        for place, (split, one, p_value) in enumerate(zip(SPLITS, found.by_split, found.p_values, strict=True))
        if one is not None and place in ground.columns
    }
    return TrialGain(
        what=what,
        ours=called(sweeps[0], ours),
        reference=called(sweeps[1], theirs),
        gain=gain,
        test=found.test,
        pairs=found.seeds if found.test == "paired" else 0,
        verdict=found.verdict,
    )


def _classes(ours: Sweep, reference: Sweep, ground: Ground) -> ClassChanges | None:
    """The winners by class; None where class sizes or the numbers of test images are not known."""
    assert ours.winner is not None
    assert reference.winner is not None
    if ours.manifest is None or reference.manifest is None or ours.test is None or reference.test is None:
        return None
    a, b, paired = matched(ours.winner, reference.winner, _by_class, pair=ground.same_test)
    classes = ours.manifest.num_classes
    images = [np.bincount(test.labels.numpy(), minlength=classes) for test in (ours.test, reference.test)]
    found = class_gains(a, b, np.minimum(*images), paired=paired)
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
            sure=bool(found.sure[k]),
        )
        for k in range(classes)
        if not math.isnan(found.gain[k])
    ]
    tested = found.p_value is not None
    return ClassChanges(
        test="none" if not tested else "paired" if paired else "welch",
        pairs=len(a) if paired and tested else 0,
        by_luck=0.05 * len(changes) if tested else None,
        changes=changes,
    )


def _by_class(setting: TrialRuns) -> np.ndarray:
    return np.array([record.class_accuracy for record in setting.records], dtype=np.float64)
