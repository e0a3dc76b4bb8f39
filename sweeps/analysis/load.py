"""Reads a sweep, finished or not, from its directory: every trial with its records, and its feature bank if present.

Reading takes no lease and is safe while the sweep runs. Records are assigned to trials by replaying the trial queue
against the ledger: with the trials of `result.json` if the sweep is finished, else with the search algorithm.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from lt_train.core.errors import LongtailError, UserError
from lt_train.features.files import Manifest, open_test, read_manifest
from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.metrics import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.result import Result
from sweeps.analysis.statistics import Array
from sweeps.config.plugin_groups import STAGE1_HEAD
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Phase, Trial, search_size
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.search.base import Search
from sweeps.store.directory import load_matrix_directory, load_spec, recorded_bank
from sweeps.store.layout import CACHE, IDENTITY, is_matrix, sweep_directory
from sweeps.store.ledger import FinishedRuns, Record

if TYPE_CHECKING:
    from torch import nn

    from lt_train.features.bank import EvalSet

__all__ = ["Sweep", "TrialRuns", "class_order", "finished_trials", "read_sweep", "read_sweeps"]

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
        """Whether a run failed."""
        return any(record.failure is not None for record in self.records)

    @property
    def recipe(self) -> tuple[MethodSpec, TrainingSpec | None]:
        """Identifies a configuration: the method and, if it trains anything, the training."""
        return self.trial.method, self.trial.training if self.trial.method.trains else None

    @property
    def values(self) -> Array:
        """Test accuracies `[S, 4]` at the selected epoch. Not for a failed trial."""
        return selection.reported(self.records)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its runs."""
        return tuple(record.seed for record in self.records)


@dataclass(frozen=True)
class Sweep:
    """One sweep as stored on disk.

    Attributes:
        baselines, searched, finalists: finished trials by phase, in the order of the sweep.
        extended: extended training of the winner; None if there is none or the sweep is unfinished.
        ranked: candidates to win, best first: finalists if the sweep has them, else trials. Of an unfinished sweep
            only trials, which all have the same seeds.
        planned_trials: trials of the whole search.
        planned_runs: runs of all phases of the whole sweep, duplicates included.
        bank: fingerprint of the features.
        manifest: of the bank; None if the storage no longer has it.
        missing: what could not be read, in sentences; for the test features see `test_error`.
        cached: runs that were requested again after they were done.
    """

    path: Path
    spec: SweepSpec
    state: State
    baselines: tuple[TrialRuns, ...]
    searched: tuple[TrialRuns, ...]
    finalists: tuple[TrialRuns, ...]
    extended: TrialRuns | None
    ranked: tuple[TrialRuns, ...]
    planned_trials: int
    planned_runs: int
    result: Result | None
    bank: str
    manifest: Manifest | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    cached: int
    ledger: FinishedRuns

    @property
    def every(self) -> tuple[TrialRuns, ...]:
        """Trials of every phase."""
        last = () if self.extended is None else (self.extended,)
        return (*self.baselines, *self.searched, *self.finalists, *last)

    @property
    def test(self) -> EvalSet | None:
        """The test features of the bank; None if there are none, see `test_error`."""
        return self._test[0]

    @property
    def test_error(self) -> str:
        """Why the test features cannot be read; empty if they can, or if there is no bank at all."""
        return self._test[1]

    @functools.cached_property
    def _test(self) -> tuple[EvalSet | None, str]:
        if self.manifest is None:
            return None, ""
        try:
            return open_test(_bank_path(self.spec, self.bank)), ""
        except (LongtailError, KeyError) as error:
            return None, f"The test features of the bank cannot be read, so figures of logits are missing: {error}"

    @property
    def winner(self) -> TrialRuns | None:
        """The best trial; of an unfinished sweep, the leader so far."""
        return self.ranked[0] if self.ranked else None

    @property
    def methods(self) -> tuple[TrialRuns, ...]:
        """The best trial of each candidate method, best first."""
        best: dict[str, TrialRuns] = {}
        for one in self.ranked:
            best.setdefault(one.trial.candidate, one)
        return tuple(best.values())

    @property
    def finished_baselines(self) -> dict[str, TrialRuns]:
        """Baselines that did not fail, by name."""
        return {one.trial.name.removeprefix("baseline-"): one for one in self.baselines if not one.failed}

    @property
    def stage1_head(self) -> TrialRuns | None:
        """The baseline that is the stage-1 head itself; None if the sweep has none or it failed."""
        return self.finished_baselines.get(STAGE1_HEAD)

    @property
    def extended_training(self) -> selection.ExtendedTraining | None:
        """The extended training compared with the winner; None if there is none or it failed."""
        if self.extended is None or self.winner is None:
            return None
        chosen, start = self.spec.selection, self.stage1_head
        records = None if start is None else start.records
        return selection.extended_training(
            self.extended.records, self.winner.records, records, metric=chosen.metric, on=chosen.on
        )

    @property
    def column(self) -> int:
        """Column of `SPLITS` of the selection metric."""
        return SPLITS.index(self.spec.selection.metric.removeprefix("acc_"))

    @property
    def num_classes(self) -> int | None:
        """K, from the bank or the records; None if neither has it."""
        if self.manifest is not None:
            return self.manifest.num_classes
        return next((len(record.loma) for one in self.every for record in one.records if record.loma), None)

    def best_seed(self, trial: TrialRuns) -> Record:
        """The run that a best-of-S report shows: the best by the selection metric."""
        chosen = self.spec.selection
        return trial.records[selection.best_seed(trial.records, metric=chosen.metric, on=chosen.on)]

    def classifier(self, trial: TrialRuns) -> nn.Module | None:
        """The stored head of a trial's best seed; None if it was not kept or cannot be read."""
        try:
            return trial.trial.method.classifier(self.ledger.head(self.best_seed(trial).key))
        except (LongtailError, OSError, KeyError, RuntimeError):
            return None


def read_sweep(run: str | Path) -> Sweep:
    """The sweep of a directory, or of the `result.json` in it.

    Raises:
        UserError: `run` is not a sweep directory, is damaged, or uses unknown kinds.
        LongtailError: its ledger is damaged.
    """
    place = Path(run).expanduser()
    directory = sweep_directory(place.parent if place.name == "result.json" and place.is_file() else place)
    spec = load_spec(directory.path)
    result = _result(directory.result)
    fingerprint = recorded_bank(spec) or ""
    missing = []
    try:
        manifest = read_manifest(_bank_path(spec, fingerprint))
    except LongtailError:
        manifest = None
        missing.append(
            "The storage no longer has the feature bank (cache/banks): figures of class sizes and logits are missing."
        )
    ledger = FinishedRuns(directory.path)
    queue = TrialQueue(spec, _Shape(fingerprint, manifest, ledger), ledger, searches=_recorded(result, spec))
    trials = finished_trials(queue)
    if not trials:
        why = "No trial has finished yet" if result is None else "The ledger has no run of this sweep"
        missing.append(f"{why}: there are no results to show.")
    phase: Phase = "finalist" if spec.selection.finalists and result is not None else "search"
    ranked = [trial.name for trial in queue.ranking(phase)]
    by_name = {one.trial.name: one for one in trials}
    size = search_size(spec)
    return Sweep(
        path=directory.path,
        spec=spec,
        state="unfinished" if result is None else "finished",
        baselines=_of("baseline", trials),
        searched=_of("search", trials),
        finalists=_of("finalist", trials),
        extended=next(iter(_of("extended", trials)), None) if result is not None else None,
        ranked=tuple(by_name[name] for name in ranked),
        planned_trials=size.trials,
        planned_runs=size.runs,
        result=result,
        bank=fingerprint,
        manifest=manifest,
        missing=tuple(missing),
        notes=tuple(result.notes if result else manifest.notes if manifest else ()),
        seconds=result.seconds if result else {"train": ledger.seconds["train"]},
        cached=queue.cached if result is None else result.runs.cached,
        ledger=ledger,
    )


def read_sweeps(runs: Sequence[str | Path]) -> list[Sweep]:
    """Several sweeps, see `read_sweep`. A matrix directory stands for those of its sweeps that were started.

    Raises:
        UserError: see `read_sweep`; a sweep is given twice; or no sweep of a matrix was started.
    """
    begun = [one for run in runs for one in (_begun(Path(run)) if is_matrix(Path(run)) else [Path(run)])]
    found = [read_sweep(one) for one in begun]
    paths = [sweep.path for sweep in found]
    if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise UserError(f"each sweep may be given only once, got more than once: {', '.join(twice)}")
    return found


def _begun(directory: Path) -> list[Path]:
    matrix = load_matrix_directory(directory)
    places = [Path(spec.storage) / spec.name for spec in matrix.sweeps]
    found = [place for place in places if (place / IDENTITY).is_file()]
    if not found:
        raise UserError(f"no sweep of matrix {matrix.name} was started; start them with `lt-sweep run` and its file")
    return found


class _Shape:
    """What the trial queue needs of a bank. Without the bank, K comes from the records; D only sizes packs."""

    def __init__(self, fingerprint: str, manifest: Manifest | None, ledger: FinishedRuns) -> None:
        known = next((len(record.loma) for record in ledger.finished.values() if record.loma), 2)
        self.fingerprint = fingerprint
        self.num_classes = manifest.num_classes if manifest else known
        self.feature_dim = manifest.feature_dim if manifest else 1


class _Recorded:
    """Replays the recorded trials of a finished search."""

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
            f"{file} is damaged; remove it and run `lt-sweep resume {file.parent}` to write it again"
        ) from None


def _bank_path(spec: SweepSpec, fingerprint: str) -> Path:
    return Path(spec.storage) / CACHE / "banks" / fingerprint


def finished_trials(queue: TrialQueue) -> list[TrialRuns]:
    """The finished trials of a queue with their records, in the order of the sweep."""
    done = [trial for trial in queue.in_order() if trial.name in queue.finished]
    return [TrialRuns(one, tuple(queue.finished[one.name]), queue.objective(one), queue.stopped(one)) for one in done]


def _of(phase: Phase, trials: Sequence[TrialRuns]) -> tuple[TrialRuns, ...]:
    return tuple(one for one in trials if one.trial.phase == phase)


def class_order(sizes: Sequence[int]) -> list[int]:
    """Classes by descending size; of equal sizes the lower number first."""
    return sorted(range(len(sizes)), key=lambda k: -sizes[k])
