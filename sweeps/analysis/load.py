"""Reads a sweep, finished or not, from its directory: every trial with its records, and its feature bank if present.

Everything comes from the ledger. Reading takes no lease and is safe while the sweep runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lt_train.core.errors import LongtailError, UserError
from lt_train.core.validation import named
from lt_train.features.files import Manifest, open_test, read_manifest
from lt_train.metrics import Score
from sweeps.analysis import selection
from sweeps.analysis.selection import TrialRuns, ranking, trial_runs
from sweeps.config.plugin_groups import STAGE1_HEAD
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Phase, Trial, baseline_trials, recorded_trial, search_size
from sweeps.store.directory import load_matrix_directory, load_spec
from sweeps.store.layout import CACHE, SweepDirectory, is_matrix, is_sweep, sweep_directory
from sweeps.store.ledger import LedgerReader
from sweeps.store.records import Record

if TYPE_CHECKING:
    from torch import nn

    from lt_train.features.bank import EvalSet

__all__ = ["Sweep", "TrialRuns", "class_order", "read_directory", "read_sweep", "read_sweeps", "sweep_in_ledger"]


@dataclass(frozen=True)
class Sweep:
    """One sweep as stored on disk.

    Attributes:
        every: the finished trials of all phases: baselines, search, finalists, and extended training of the winner.
        bank: fingerprint of the features.
        manifest: of the bank; None if the storage no longer has it.
        missing: messages about what could not be read; for test features and heads see `test_error` and `head_errors`.
    """

    path: Path
    spec: SweepSpec
    every: tuple[TrialRuns, ...]
    bank: str
    manifest: Manifest | None
    missing: tuple[str, ...]
    ledger: LedgerReader

    @property
    def state(self) -> Literal["finished", "unfinished"]:
        """Whether every run is recorded."""
        return "unfinished" if self.ledger.end is None else "finished"

    @property
    def baselines(self) -> tuple[TrialRuns, ...]:
        """Baselines in the order of the file."""
        return self._of("baseline")

    @property
    def searched(self) -> tuple[TrialRuns, ...]:
        """Trials of the search, by candidate in the order of the file, then by number."""
        return self._of("search")

    @property
    def finalists(self) -> tuple[TrialRuns, ...]:
        """Finalists of each candidate, best trial of the search first."""
        return self._of("finalist")

    @property
    def extended(self) -> TrialRuns | None:
        """Extended training of the winner; None if there is none or the sweep is unfinished."""
        return next(iter(self._of("extended")), None) if self.state == "finished" else None

    @functools.cached_property
    def ranked(self) -> tuple[TrialRuns, ...]:
        """Candidates to win, best first: finalists if the sweep has them, else trials.

        Of an unfinished sweep only trials, which all have the same seeds.
        """
        phase: Phase = "finalist" if self.spec.selection.finalists and self.state == "finished" else "search"
        return tuple(ranking(self.every, self.spec, phase))

    @functools.cached_property
    def _by_phase(self) -> dict[str, tuple[TrialRuns, ...]]:
        phases = dict.fromkeys(one.trial.phase for one in self.every)
        return {phase: tuple(one for one in self.every if one.trial.phase == phase) for phase in phases}

    def _of(self, phase: Phase) -> tuple[TrialRuns, ...]:
        return self._by_phase.get(phase, ())

    @property
    def planned_trials(self) -> int:
        """Trials of the whole search."""
        return search_size(self.spec).trials

    @property
    def planned_runs(self) -> int:
        """Runs of all phases of the whole sweep, duplicates included."""
        return search_size(self.spec).runs

    @property
    def shared_runs(self) -> int:
        """Runs that were requested again after they were trained for an earlier trial."""
        keys = [record.key for one in self.every for record in one.records]
        return len(keys) - len(set(keys))

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by activity: training of all calls, and once the sweep is finished those of its last call."""
        return {**(self.ledger.end.seconds if self.ledger.end else {}), "train": self.ledger.train_seconds}

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the data, and on methods whose validation accuracy is optimistic."""
        names = dict.fromkeys(one.trial.candidate for one in self.every if one.trial.method.uses_val)
        optimistic = (
            f"Accuracies of {', '.join(names)} on the validation set are optimistic, because the method sets values "
            "from that set; compare methods on the test set.",
        )
        if self.ledger.end is not None:
            of_data: tuple[str, ...] = self.ledger.end.notes
        else:
            of_data = tuple(self.manifest.notes) if self.manifest is not None else ()
        return of_data + optimistic if names else of_data

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

    @functools.cached_property
    def extended_training(self) -> selection.ExtendedTraining | None:
        """The extended training compared with the winner; None if there is none or it failed."""
        if self.extended is None or self.winner is None:
            return None
        chosen = self.spec.selection
        return selection.extended_training(
            self.extended, self.winner, self.stage1_head, metric=chosen.metric, on=chosen.on
        )

    @property
    def column(self) -> int:
        """Column of the selection metric."""
        return selection.column_of(self.spec.selection.metric, self.spec.scores)

    @property
    def score(self) -> Score:
        """The selection metric."""
        return self.spec.scores[self.column]

    @property
    def num_classes(self) -> int | None:
        """K, from the bank or the records; None if neither has it."""
        if self.manifest is not None:
            return self.manifest.num_classes
        known = next((one for one in self.every if not one.failed), None)
        return None if known is None else known.by_class("loma").shape[1]

    def best_seed(self, trial: TrialRuns) -> Record:
        """The run that a best-of-S report shows: the best by the selection metric."""
        return trial.records[selection.best_seed(trial.records, column=self.column, on=self.spec.selection.on)]

    def classifier(self, trial: TrialRuns) -> nn.Module | None:
        """The stored head of a trial's best seed; None if there is none or it cannot be read, see `head_errors`."""
        return self._head(trial)[0]

    @functools.cached_property
    def head_errors(self) -> tuple[str, ...]:
        """Why heads of the winner and of the baselines that should be stored cannot be read."""
        compared = [*([] if self.winner is None else [self.winner]), *self.finished_baselines.values()]
        return tuple(dict.fromkeys(error for one in compared if (error := self._head(one)[1])))

    def _head(self, trial: TrialRuns) -> tuple[nn.Module | None, str]:
        """The head of a trial's best seed, or why it cannot be read; neither if it was not stored or was removed."""
        record = self.best_seed(trial)
        if record.status != "finished":
            return None, ""
        # While the sweep runs, the head of a leader is removed once another trial leads.
        removed = trial.trial.phase == "search" and self.state == "unfinished" and self.ledger.is_head_lost(record.key)
        try:
            return (None, "") if removed else (trial.trial.method.classifier(self.ledger.head(record.key)), "")
        except (LongtailError, OSError, KeyError, RuntimeError) as error:
            return None, f"The head of {trial.trial.name} cannot be read, so figures of logits lack it: {error}"


def read_sweep(run: str | os.PathLike[str]) -> Sweep:
    """The sweep of a directory, or of the `result.json` in it.

    Raises:
        UserError: `run` is not a sweep directory, is damaged, or uses unknown kinds.
        LongtailError: its ledger is damaged.
    """
    place = Path(run).expanduser()
    return read_directory(sweep_directory(place.parent if place.name == "result.json" and place.is_file() else place))


def read_directory(directory: SweepDirectory) -> Sweep:
    """The sweep of a directory whose identity is read already.

    Raises:
        UserError: its spec uses unknown kinds.
        LongtailError: its ledger is damaged.
    """
    spec, ledger = load_spec(directory), LedgerReader(directory.path, directory.sweep_id)
    if ledger.damage:
        raise LongtailError(
            f"{ledger.path} is damaged: {named(ledger.damage, 5)}; `lt-sweep resume {directory.path}` restores it, and "
            "trains again what cannot be restored"
        )
    return sweep_in_ledger(directory.path, spec, ledger, directory.bank_fingerprint)


def sweep_in_ledger(path: Path, spec: SweepSpec, ledger: LedgerReader, bank: str) -> Sweep:
    """The sweep of a directory whose ledger is open already; `bank` is the fingerprint of its features."""
    missing = []
    try:
        manifest = read_manifest(_bank_path(spec, bank))
    except LongtailError as error:
        manifest = None
        why = f"The feature bank cannot be read ({error})"
        if not _bank_path(spec, bank).exists():
            why = "The storage no longer has the feature bank (cache/banks)"
        missing.append(f"{why}: figures of class sizes and logits are missing.")
    every = tuple(_trials(spec, ledger))
    if not every:
        why = "No trial has finished yet" if ledger.end is None else "The ledger has no run of this sweep"
        missing.append(f"{why}: there are no results to show.")
    return Sweep(path, spec, every, bank, manifest, tuple(missing), ledger)


def _trials(spec: SweepSpec, ledger: LedgerReader) -> list[TrialRuns]:
    """The complete trials of a ledger: baselines, search and finalists of each candidate, extended training."""
    candidates = {one.name: one for one in spec.candidates()}
    baselines = {trial.name: trial for trial in baseline_trials(spec)}
    found: list[TrialRuns] = []
    for one in ledger.trials.values():
        trial: Trial | None = None
        if one.phase == "baseline":
            trial = baselines.get(one.name)
        elif one.method in candidates:
            trial = recorded_trial(spec, candidates[one.method], one.phase, one.number, one.params)
        records = [ledger.runs[key] for key in one.keys if key in ledger.runs]
        if trial is not None and trial.name == one.name and len(records) == len(one.keys):
            found.append(trial_runs(trial, records, spec.selection, ledger, spec.scores))
    best_first = ranking(found, spec, "search")
    ranks = {(one.trial.candidate, one.trial.number): rank for rank, one in enumerate(best_first)}
    places = {name: place for place, name in enumerate(["", *candidates])}

    def place(one: TrialRuns) -> tuple[int, ...]:
        trial = one.trial
        if trial.phase == "extended":
            return (len(places),)
        if trial.phase == "finalist":  # in the order in which they were chosen, the best trial of the search first
            return places[trial.candidate], 1, ranks.get((trial.candidate, trial.number), 0)
        return places[trial.candidate], 0, trial.number

    return sorted(found, key=place)


def read_sweeps(runs: Sequence[str | os.PathLike[str]]) -> list[Sweep]:
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
    found = [place for place in places if is_sweep(place)]
    if not found:
        raise UserError(f"no sweep of matrix {matrix.name} was started; start them with `lt-sweep run` and its file")
    return found


def _bank_path(spec: SweepSpec, fingerprint: str) -> Path:
    return Path(spec.storage) / CACHE / "banks" / fingerprint


def class_order(sizes: Sequence[int]) -> list[int]:
    """Classes by descending size; of equal sizes the lower number first."""
    return sorted(range(len(sizes)), key=lambda k: -sizes[k])
