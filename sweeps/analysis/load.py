"""A sweep as its directory tells it, finished or not: every setting with its records, and what is left of its bank.

Reads alone, takes no lease and may be called while the sweep runs. Which setting a record belongs to is found by
replaying the schedule against the ledger: with the trials that `result.json` names where the sweep is finished, with
the sampler's own questions where it is not. Knows directories, schedules and banks; knows nothing of a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from lt_train.core.errors import LongtailError, UserError
from lt_train.features.bank import EvalSet
from lt_train.features.files import Manifest, open_test, read_manifest
from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.result import Result
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Phase, Trial, search_size
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.search.base import Search
from sweeps.store.directory import known_bank, load_spec
from sweeps.store.layout import CACHE, IDENTITY, is_matrix, sweep_directory
from sweeps.store.ledger import FinishedRuns, Record
from sweeps.store.matrix_directory import load_known_matrix

__all__ = ["Sweep", "TrialRuns", "class_order", "read_sweep", "read_sweeps"]

State = Literal["finished", "unfinished"]


@dataclass(frozen=True)
class TrialRuns:
    """A trial with the records of all its seeds, in seed order; `objective` is None where it failed."""

    trial: Trial
    records: tuple[Record, ...]
    objective: float | None
    stopped: int | None

    @property
    def failed(self) -> bool:
        """Whether one of its runs failed."""
        return any(record.failure is not None for record in self.records)

    @property
    def recipe(self) -> tuple[MethodSpec, TrainingSpec | None]:
        """What makes two settings the same: the method, and where it trains anything, how."""
        return self.trial.method, self.trial.training if self.trial.method.trains else None

    @property
    def values(self) -> selection.Array:
        """Test accuracies `[S, 4]` at the epoch that counts; of a setting that did not fail."""
        return selection.reported(self.records)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its runs."""
        return tuple(record.seed for record in self.records)


@dataclass(frozen=True)
class Sweep:
    """One sweep as it lies on disk.

    Attributes:
        baselines, searched, finalists: finished settings by phase, in the order of the sweep.
        longer: the winner trained longer; None where that was not done, or who wins is not known.
        ranked: what may win, best first: finalists where the sweep has them, trials else. While it is unfinished
            trials alone, which all have the same seeds.
        asked: trials of the search that will be asked for in all.
        runs_wanted: runs of every phase that the whole sweep asks for, duplicates counted.
        bank: fingerprint of the features.
        manifest, test: of the bank; None where the storage's cache has lost it.
        missing: what could not be read, in sentences.
        cached: runs that were wanted and found done.
    """

    path: Path
    spec: SweepSpec
    state: State
    baselines: tuple[TrialRuns, ...]
    searched: tuple[TrialRuns, ...]
    finalists: tuple[TrialRuns, ...]
    extended: TrialRuns | None
    ranked: tuple[TrialRuns, ...]
    asked: int
    runs_wanted: int
    result: Result | None
    bank: str
    manifest: Manifest | None
    test: EvalSet | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    cached: int
    ledger: FinishedRuns

    @property
    def every(self) -> tuple[TrialRuns, ...]:
        """Settings of every phase."""
        last = () if self.extended is None else (self.extended,)
        return (*self.baselines, *self.searched, *self.finalists, *last)

    @property
    def winner(self) -> TrialRuns | None:
        """The first of those that may win; the leader while the sweep is unfinished."""
        return self.ranked[0] if self.ranked else None

    @property
    def methods(self) -> tuple[TrialRuns, ...]:
        """The best setting of each candidate, best first."""
        best: dict[str, TrialRuns] = {}
        for setting in self.ranked:
            best.setdefault(setting.trial.candidate, setting)
        return tuple(best.values())

    @property
    def sound_baselines(self) -> dict[str, TrialRuns]:
        """Baselines that did not fail, by name."""
        return {one.trial.name.removeprefix("baseline-"): one for one in self.baselines if not one.failed}

    @property
    def extended_training(self) -> selection.ExtendedTraining | None:
        """What became of the winner when it trained longer; None where nobody can say."""
        if self.extended is None or self.winner is None:
            return None
        chosen, start = self.spec.selection, self.sound_baselines.get("vanilla")
        records = None if start is None else start.records
        return selection.extended_training(
            self.extended.records, self.winner.records, records, metric=chosen.metric, on=chosen.on
        )

    @property
    def column(self) -> int:
        """The split that is selected on, as a column of accuracies."""
        return SPLITS.index(self.spec.selection.metric.removeprefix("acc_"))

    @property
    def num_classes(self) -> int | None:
        """K, as bank or records tell it."""
        if self.manifest is not None:
            return self.manifest.num_classes
        return next((len(record.loma) for one in self.every for record in one.records if record.loma), None)

    def best_seed(self, setting: TrialRuns) -> Record:
        """The run that a best-of-S report shows."""
        chosen = self.spec.selection
        return setting.records[selection.best_seed(setting.records, metric=chosen.metric, on=chosen.on)]

    def classifier(self, setting: TrialRuns) -> nn.Module | None:
        """The kept head of a setting's best seed; None where it was dropped, or the directory was thinned out."""
        try:
            return setting.trial.method.classifier(self.ledger.head(self.best_seed(setting).key))
        except (LongtailError, OSError, KeyError, RuntimeError):
            return None


def read_sweep(run: str | Path) -> Sweep:
    """The sweep of a directory, or of the `result.json` in it.

    Raises:
        UserError: this is no sweep directory, or it is damaged, or names kinds that are not there.
        LongtailError: its ledger is damaged.
    """
    place = Path(run).expanduser()
    directory = sweep_directory(place.parent if place.name == "result.json" and place.is_file() else place)
    spec = load_spec(directory.path)
    result = _result(directory.result)
    fingerprint = known_bank(spec) or ""
    manifest, test, missing = _bank(Path(spec.storage) / CACHE / "banks" / fingerprint)
    ledger = FinishedRuns(directory.path)
    queue = TrialQueue(spec, _Shape(fingerprint, manifest, ledger), ledger, searches=_recorded(result, spec))
    settings = [_trial_runs(queue, trial) for trial in queue.in_order() if trial.name in queue.finished]
    if not settings:
        why = "Nothing is finished yet" if result is None else "The ledger no longer holds a run of this sweep"
        missing = [*missing, f"{why}: there is nothing to show."]
    phase: Phase = "finalist" if spec.selection.finalists and result is not None else "search"
    ranked = [trial.name for trial in queue.ranking(phase)]
    by_name = {one.trial.name: one for one in settings}
    size = search_size(spec)
    return Sweep(
        path=directory.path,
        spec=spec,
        state="unfinished" if result is None else "finished",
        baselines=_of("baseline", settings),
        searched=_of("search", settings),
        finalists=_of("finalist", settings),
        extended=next(iter(_of("extended", settings)), None) if result is not None else None,
        ranked=tuple(by_name[name] for name in ranked),
        asked=size.trials,
        runs_wanted=size.runs,
        result=result,
        bank=fingerprint,
        manifest=manifest,
        test=test,
        missing=tuple(missing),
        notes=tuple(result.notes if result else manifest.notes if manifest else ()),
        seconds=result.seconds if result else {"train": ledger.seconds["train"]},
        cached=queue.cached if result is None else result.runs.cached,
        ledger=ledger,
    )


def read_sweeps(runs: Sequence[str | Path]) -> list[Sweep]:
    """As `read_sweep`, of several; a matrix's directory stands for those of its sweeps that have begun.

    Raises:
        UserError: as there; a sweep is given twice; or no sweep of a matrix has begun.
    """
    begun = [one for run in runs for one in (_begun(Path(run)) if is_matrix(Path(run)) else [Path(run)])]
    found = [read_sweep(one) for one in begun]
    paths = [sweep.path for sweep in found]
    if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise UserError(f"each sweep may be given once, got {', '.join(twice)} more than once")
    return found


def _begun(directory: Path) -> list[Path]:
    matrix = load_known_matrix(directory)
    places = [Path(spec.storage) / spec.name for spec in matrix.sweeps]
    found = [place for place in places if (place / IDENTITY).is_file()]
    if not found:
        raise UserError(f"no sweep of {matrix.name} has begun; `lt-sweep run` with its file starts them")
    return found


class _Shape:
    """A bank as a schedule knows it. Without the bank K comes from the records; D only decides packs, and none runs."""

    def __init__(self, fingerprint: str, manifest: Manifest | None, ledger: FinishedRuns) -> None:
        known = next((len(record.loma) for record in ledger.finished.values() if record.loma), 2)
        self.fingerprint = fingerprint
        self.num_classes = manifest.num_classes if manifest else known
        self.feature_dim = manifest.feature_dim if manifest else 1


class _Recorded:
    """A search that is over: asks what was asked then, and learns nothing."""

    def __init__(self, params: Sequence[dict[str, Any]]) -> None:
        self._params = params

    def ask(self, number: int) -> dict[str, Any] | None:
        """See `sweeps.search.base.Search`."""
        return self._params[number] if number < len(self._params) else None

    def tell(self, number: int, value: float | None, stopped: int | None = None) -> None:
        """Nothing."""


def _recorded(result: Result | None, spec: SweepSpec) -> dict[str, Search]:
    if result is None:
        return {}
    by_name: dict[str, list[dict[str, Any]]] = {one.name: [] for one in spec.candidates()}
    for row in result.trials:
        by_name.setdefault(row.method, []).append(row.params)
    return {name: _Recorded(params) for name, params in by_name.items()}


def _result(file: Path) -> Result | None:
    if not file.exists():
        return None
    try:
        return Result.model_validate_json(file.read_text())
    except (ValidationError, UnicodeDecodeError):
        raise UserError(
            f"{file} is damaged; remove it and run `lt-sweep resume {file.parent}` to write it anew"
        ) from None


def _bank(path: Path) -> tuple[Manifest | None, EvalSet | None, list[str]]:
    try:
        manifest = read_manifest(path)
    except LongtailError:
        gone = "The storage no longer has the feature bank (cache/banks): class sizes and logits could not be drawn."
        return None, None, [gone]
    try:
        return manifest, open_test(path), []
    except (LongtailError, KeyError) as error:
        return manifest, None, [f"The bank's test features could not be read, so no logits were drawn: {error}"]


def _trial_runs(queue: TrialQueue, trial: Trial) -> TrialRuns:
    records = tuple(queue.finished[trial.name])
    return TrialRuns(trial, records, queue.objective(trial), queue.stopped(trial))


def _of(phase: Phase, settings: Sequence[TrialRuns]) -> tuple[TrialRuns, ...]:
    return tuple(one for one in settings if one.trial.phase == phase)


def class_order(sizes: Sequence[int]) -> list[int]:
    """Classes by descending size; ties: the lower number."""
    return torch.tensor(sizes).argsort(descending=True, stable=True).tolist()
