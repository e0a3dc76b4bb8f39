"""The queue of trials of a sweep: baselines, the search and finalists of every candidate, then extended training.

A state machine that starts no work itself. A backend takes packs from it and returns their results.

What a candidate's search proposes follows from the sweep file and from the outcomes of its own trials, which it
receives in a fixed order (`sweeps.config.trials`). Therefore the trials depend on the sweep file alone: not on workers,
timing or interruptions, nor on other candidates. Proposed trials are recorded before they are trained, so a resumed
sweep takes them from the ledger.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from lt_train.core.code import code_of
from lt_train.core.validation import named
from lt_train.features.bank import FeatureBank
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult
from sweeps.analysis.selection import TrialRuns, ranking, trial_runs
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Phase, Study, Trial, baseline_trials, extended_trial
from sweeps.experiment.events import Callback, PackFailed, PackStarted, PhaseFinished, RunFinished, TrialFinished
from sweeps.experiment.packing import Outcome, PackSize, Retries, pack_runs
from sweeps.search.base import Tried
from sweeps.store.ledger import Ledger
from sweeps.store.records import run_key

__all__ = ["TrialQueue"]

logger = logging.getLogger(__name__)


class TrialQueue:
    """Decides what to train next and records what is finished. Implements `sweeps.config.interfaces.PackSource`.

    Args:
        spec: the sweep.
        bank: its feature bank.
        ledger: the recorded trials and runs.
        emit: called with the events of packs, runs, trials and phases (`sweeps.experiment.events`).

    Attributes:
        finished: every complete trial by name.
        trials: every trial so far, by name.
        studies: the search of each candidate, in the order of the file.
        extended: extended training of the winner, if there is any; None until the winner is known.
        retries: the retry policy and its counters.
        seconds: time spent in the search algorithms.
    """

    def __init__(
        self,
        spec: SweepSpec,
        bank: FeatureBank,
        ledger: Ledger,
        emit: Callback = lambda event: None,
    ) -> None:
        self.spec, self.bank_fingerprint, self.ledger, self.emit = spec, bank.fingerprint, ledger, emit
        self.size = PackSize(spec.resources, spec.search.early_stopping, bank.num_classes, bank.feature_dim)
        self.rule = spec.selection.epoch_rule(spec.metrics)
        recorded = _searched_values(ledger)
        self.studies = [Study(spec, one, recorded.get(one.name, {})) for one in spec.candidates()]
        self.trials: dict[str, Trial] = {}
        self.finished: dict[str, TrialRuns] = {}
        self.retries = Retries()
        self.seconds = 0.0
        self.extended: list[Trial] | None = None
        self._phases: deque[Phase] = deque(get_args(Phase))
        self._earlier = frozenset(ledger.runs)
        self._ready: deque[Pack] = deque()
        self._in_flight: set[str] = set()
        self._first: dict[str, Trial] = {}
        self._keys: dict[str, list[str]] = {}
        self._packs: dict[str, Pack] = {}
        self._pack_keys: dict[str, list[str]] = {}
        self._open: dict[str, Trial] = {}
        self._without_heads: set[str] = set()
        self._restoring: set[str] = set()
        self._leader: TrialRuns | None = None
        self._baselines: frozenset[str] = frozenset()
        self._enqueue("baseline", baseline_trials(spec))
        self._baselines = frozenset(self._first)
        self._advance()

    def next_pack(self) -> Pack | None:
        """The next pack to train; None if it depends on packs that are being trained."""
        if not self._ready:
            return None
        pack = self._ready.popleft()
        self._in_flight.add(pack.name)
        self.emit(PackStarted(pack))
        return pack

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        """Record a trained pack, in the ledger first, and advance."""
        self._record(Outcome(pack, results, seconds))

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        """Record that a pack failed; it is scheduled again, as a whole or in parts."""
        packs, outcome = self.retries.failed(pack, why, own=own)
        if outcome is not None:
            self._record(outcome)
            return
        self._in_flight.discard(pack.name)
        self._ready.extendleft(reversed(packs))  # first in the queue, because a proposal batch waits for it
        self.emit(PackFailed(pack, why, lost=not own))

    def _record(self, outcome: Outcome) -> None:
        complete = self.retries.reassembled(outcome)
        if complete is not None:
            keys = self._pack_keys[complete.pack.name]
            trials = [self._first[key] for key in keys]
            records = self.ledger.append(complete.pack, trials, keys, complete.results, complete.seconds)
            self._restoring.discard(complete.pack.name)
            for record, trial in zip(records, trials, strict=True):
                self.emit(RunFinished(record, trial))
        self._in_flight.discard(outcome.pack.name)
        self._advance()

    def exhausted(self) -> bool:
        """Whether everything is finished."""
        return not self._ready and not self._in_flight and self.extended is not None

    def winner(self) -> TrialRuns | None:
        """The best finalist, or the best trial if the sweep has no finalists; None if all failed."""
        phase: Phase = "finalist" if self.spec.selection.finalists else "search"
        return next(iter(ranking(self.finished.values(), self.spec, phase)), None)

    def pack_sizes(self) -> str:
        """A description of the largest pack in the queue; empty if there is none."""
        largest = max(self._ready, key=lambda pack: len(pack.runs), default=None)
        return "" if largest is None else self.size.describe(largest.runs[0], len(largest.runs))

    def _advance(self) -> None:
        """Collect complete trials and queue new ones, until nothing changes."""
        self._collect_complete()
        for study in self.studies:
            # Proposal batch g + 1 is always requested before the outcomes of batch g are reported, also where batch g
            # is recorded and complete at once, because the proposals depend on that order.
            while self._ask(study) or self._tell(study) or self._finish(study):
                self._collect_complete()
        if self._train_extended():
            self._collect_complete()
        self._finish_phases()

    def _finish_phases(self) -> None:
        """Emit the end of every phase whose trials are all known and finished, and those of the phases before it."""
        searched = all(study.finalists is not None for study in self.studies)
        known = {"baseline": True, "search": searched, "finalist": searched, "extended": self.extended is not None}
        while self._phases and known[self._phases[0]]:
            if self._restoring or any(trial.phase == self._phases[0] for trial in self._open.values()):
                break
            self.emit(PhaseFinished(self._phases.popleft()))

    def _collect_complete(self) -> None:
        self._finish_phases()  # a resumed sweep collects the trials of one phase after those of the phase before
        for name, trial in list(self._open.items()):
            keys = self._keys[name]
            if all(key in self.ledger.runs for key in keys):
                records = [self.ledger.runs[key] for key in keys]
                self.finished[name] = trial_runs(trial, records, self.spec.selection, self.ledger, self.rule.scores)
                del self._open[name]
                if trial.phase == "extended":
                    others = {key for other, keys in self._keys.items() if other != name for key in keys}
                    self.ledger.drop_heads({*keys} - others)
                self.emit(TrialFinished(self.finished[name], recorded=self._earlier.issuperset(keys)))

    def _ask(self, study: Study) -> bool:
        with self._timed():
            batch = study.ask()
        if batch:
            self._check_version(study, batch)
            self._enqueue("search", batch, study)
        return batch is not None

    def _check_version(self, study: Study, batch: Sequence[Trial]) -> None:
        """Warn if new trials are proposed with another version of a library than earlier ones; once: it is recorded."""
        running, recorded = study.proposed_with, self.ledger.proposed_with
        is_new = any(trial.name not in self.ledger.trials for trial in batch)
        if running and recorded and running not in recorded and is_new:
            logger.warning(
                "the trials so far were proposed with %s, the remaining ones are proposed with %s; recorded trials are "
                "kept, but a sweep with a single version may try other trials",
                ", ".join(recorded),
                running,
            )

    def _tell(self, study: Study) -> bool:
        due = study.next_to_report()
        if not due or any(trial.name not in self.finished for trial in due):
            return False
        study.tell(self._outcome)
        self._drop_heads(self.finished[trial.name] for trial in due)
        return True

    def _outcome(self, trial: Trial) -> Tried:
        """A finished trial as the search algorithm sees it."""
        runs = self.finished[trial.name]
        if runs.objective is None:
            return Tried(trial.params, "failed")
        return Tried(trial.params, "finished" if runs.stopped is None else "stopped", runs.objective, runs.stopped)

    def _finish(self, study: Study) -> bool:
        if study.finalists is not None or not study.is_complete():
            return False
        best = ranking(self.finished.values(), self.spec, "search", study.candidate.name)
        self._enqueue("finalist", study.finish([one.trial for one in best]), study)
        return True

    def _train_extended(self) -> bool:
        """Queue extended training of the winner once it is final: every trial other than baselines is complete."""
        final = all(study.finalists is not None for study in self.studies)
        if self.extended is not None or not final or any(trial.phase != "baseline" for trial in self._open.values()):
            return False
        winner, self.extended = self.winner(), []
        if winner is None:
            return False
        self._restore_heads(self._keys[winner.trial.name])
        trial = extended_trial(self.spec, winner.trial)
        if trial is not None:
            self.extended = [trial]
            study = next(study for study in self.studies if study.candidate.name == trial.candidate)
            self._enqueue("extended", self.extended, study)
        return trial is not None

    def _drop_heads(self, reported: Iterable[TrialRuns]) -> None:
        """Remove the heads of reported trials that cannot become the champion; finalists have heads of their own."""
        trials = [*reported, *([self._leader] if self._leader is not None else [])]
        self._leader = next(iter(ranking(trials, self.spec, "search")), None)
        # By key, because a duplicate of the best trial, and a baseline, may share its heads.
        kept = set() if self._leader is None else {record.key for record in self._leader.records}
        self.ledger.drop_heads({record.key for one in trials for record in one.records} - kept - self._baselines)

    def _restore_heads(self, keys: Iterable[str]) -> None:
        """Queue the packs of recorded runs whose heads are lost, because their file was damaged."""
        names = {self.ledger.runs[key].pack for key in keys if self.ledger.is_head_lost(key)}
        names -= self._without_heads  # the winner is also a finalist, and may share runs with a baseline
        self._without_heads |= names
        self._restoring |= names
        packs = [self._packs[name] for name in sorted(names)]
        if packs:
            logger.warning(
                "the trained heads of %s are missing; its %d runs are trained again",
                named([pack.name for pack in packs], 5),
                sum(len(pack.runs) for pack in packs),
            )
        self._ready.extend(packs)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def _enqueue(self, phase: Phase, trials: Sequence[Trial], study: Study | None = None) -> None:
        """Group the new runs of trials into packs and queue the packs that the ledger does not hold.

        A pack is recorded as a whole and trained as a whole, because the result of a run may depend on the other runs
        in its pack.
        """
        pool = study.candidate.prefix if study else ""
        keys_of: dict[Run, str] = {}
        for trial in trials:
            self.trials[trial.name] = self._open[trial.name] = trial
            code = code_of([trial.method, *self.rule.metrics])
            keys = self._keys[trial.name] = [self._key(run, phase, pool, code) for run in trial.runs()]
            for run, key in zip(trial.runs(), keys, strict=True):
                if key not in self._first:
                    self._first[key] = trial
                    keys_of[run] = key
        proposed_with = study.proposed_with if study and phase == "search" else ""
        self.ledger.propose(((trial, self._keys[trial.name]) for trial in trials), proposed_with)
        name = study.pack_name(phase) if study else phase
        halving = functools.partial(self._halving, phase=phase)
        for pack in pack_runs(name, list(keys_of), self._rule(phase), self.size.lanes, halving):
            keys = self._pack_keys[pack.name] = [keys_of[run] for run in pack.runs]
            self._packs[pack.name] = pack
            if not all(key in self.ledger.runs for key in keys):
                self._ready.append(pack)
            elif phase in ("baseline", "finalist"):
                self._restore_heads(keys)

    def _rule(self, phase: Phase) -> EpochSelection:
        """Which epoch of a run counts; in extended training always the last."""
        return replace(self.rule, epoch="last") if phase == "extended" else self.rule

    def _halving(self, run: Run, phase: Phase) -> Halving | None:
        """How the trials of a run's pack are stopped early; None outside the search: reported runs are complete."""
        if phase != "search" or not run.method.trains:
            return None
        return self.spec.search.early_stopping.halving(run.training)

    def _key(self, run: Run, phase: Phase, pool: str, code: Mapping[str, str]) -> str:
        """A run's key: shared within a candidate and with an identical baseline, but not between candidates.

        Which of two candidates requests a run first depends on timing, and so would the pack of a shared run.
        """
        halving = self._halving(run, phase)
        rule = self._rule(phase)
        as_baseline = run_key(self.bank_fingerprint, run, rule, code=code)
        if halving is None and (not pool or as_baseline in self._baselines):
            return as_baseline
        return run_key(self.bank_fingerprint, run, rule, halving, pool, code)


def _searched_values(ledger: Ledger) -> dict[str, dict[int, dict[str, Any]]]:
    """The searched values of every recorded trial of the search, by candidate and number."""
    values: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for trial in ledger.trials.values():
        if trial.phase == "search":
            values[trial.method][trial.number] = trial.params
    return values
