"""The queue of trials of a sweep: baselines, the search and finalists of every candidate, then extended training.

A state machine that starts no work itself. A backend takes packs from it and returns their results.

What a candidate's search proposes follows from the sweep file and from the outcomes of its own trials, which it
receives in a fixed order (`sweeps.config.trials`). Therefore the trials depend on the sweep file alone: not on workers,
timing or interruptions, nor on other candidates. A resume replays the same proposals against the ledger.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult
from sweeps.analysis import selection
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Phase, Study, Trial, baseline_trials
from sweeps.experiment.packing import Outcome, PackSize, Retries, pack_runs
from sweeps.search.base import Search
from sweeps.store.ledger import FinishedRuns, Record, run_key

__all__ = ["BankShape", "TrialQueue"]


class BankShape(Protocol):
    """The properties of a feature bank that the queue needs."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the features."""

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""

    @property
    def feature_dim(self) -> int:
        """Dimension of the features, D."""


class TrialQueue:
    """Decides what to train next and records what is finished. Implements `sweeps.config.interfaces.PackSource`.

    Args:
        spec: the sweep.
        bank: the shape of its feature bank.
        ledger: the finished runs; a writable `Ledger` unless the queue is only replayed.
        on_trial: called once for every trial that completes, including replayed ones.
        searches: replacements for the spec's search algorithm, by candidate.

    Attributes:
        finished: records of every complete trial by name, in seed order.
        trials: every trial so far, by name.
        studies: the search of each candidate, in the order of the file.
        extended: the trial of extended training, if there is one; None until the winner is known.
        cached: number of requested runs that were finished already.
        retries: the retry policy and its counters.
        seconds: time spent in the search algorithms.
    """

    def __init__(
        self,
        spec: SweepSpec,
        bank: BankShape,
        ledger: FinishedRuns,
        on_trial: Callable[[Trial, list[Record]], None] = lambda trial, records: None,
        searches: Mapping[str, Search] | None = None,
    ) -> None:
        self.spec, self.bank_fingerprint, self.ledger, self.on_trial = spec, bank.fingerprint, ledger, on_trial
        self.size = PackSize(spec.resources, spec.search.early_stopping, bank.num_classes, bank.feature_dim)
        self.rule = spec.selection.epoch_rule()
        self.studies = [Study(spec, candidate, (searches or {}).get(candidate.name)) for candidate in spec.candidates()]
        self.trials: dict[str, Trial] = {}
        self.finished: dict[str, list[Record]] = {}
        self.cached = 0
        self.retries = Retries()
        self.seconds = 0.0
        self.extended: list[Trial] | None = None
        self._ready: deque[Pack] = deque()
        self._in_flight: set[str] = set()
        self._wanted: set[str] = set()
        self._keys: dict[str, list[str]] = {}
        self._pack_keys: dict[str, list[str]] = {}
        self._open: dict[str, Trial] = {}
        self._baselines: frozenset[str] = frozenset()
        self._enqueue("baseline", baseline_trials(spec))
        self._baselines = frozenset(self._wanted)
        self._advance()

    def next_pack(self) -> Pack | None:
        """The next pack to train; None if it depends on packs that are being trained."""
        if not self._ready:
            return None
        pack = self._ready.popleft()
        self._in_flight.add(pack.name)
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

    def _record(self, outcome: Outcome) -> None:
        complete = self.retries.reassembled(outcome)
        if complete is not None:
            keys = self._pack_keys[complete.pack.name]
            self.ledger.append(complete.pack, keys, complete.results, complete.seconds)
        self._in_flight.discard(outcome.pack.name)
        self._advance()

    def exhausted(self) -> bool:
        """Whether everything is finished."""
        return not self._ready and not self._in_flight and self.extended is not None

    def objective(self, trial: Trial) -> float | None:
        """The objective of a finished trial, for a stopped one at its last epoch; None if it failed."""
        protocol = self.spec.selection
        records = self.finished[trial.name]
        return selection.objective(records, metric=protocol.metric, on=protocol.on, how=protocol.objective)

    def stopped(self, trial: Trial) -> int | None:
        """The number of epochs after which a finished trial was stopped early; None if it was not."""
        return selection.stopped(self.finished[trial.name])

    def ranking(self, phase: Phase, candidate: str | None = None) -> list[Trial]:
        """Finished trials of a phase that neither failed nor were stopped, best first; of one candidate or of all.

        Ties are broken by the order of candidates in the file, then by the trial number.
        """
        order = {study.candidate.name: position for position, study in enumerate(self.studies)}
        scored = [
            ((-score, order.get(trial.candidate, 0), trial.number), trial)
            for trial in self.trials.values()
            if trial.phase == phase
            and candidate in (None, trial.candidate)
            and trial.name in self.finished
            and self.stopped(trial) is None
            and (score := self.objective(trial)) is not None
        ]
        return [trial for _, trial in sorted(scored, key=lambda entry: entry[0])]

    def in_order(self) -> list[Trial]:
        """Every trial so far: baselines, search and finalists of each candidate, extended training."""
        ordered = [trial for trial in self.trials.values() if trial.phase == "baseline"]
        for study in self.studies:
            ordered += [trial for batch in study.batches for trial in batch]
            ordered += study.finalists or []
        return ordered + (self.extended or [])

    def winner(self, candidate: str | None = None) -> Trial | None:
        """The best finalist, or the best trial if the sweep has no finalists; None if all failed."""
        ranking = self.ranking("finalist" if self.spec.selection.finalists else "search", candidate)
        return ranking[0] if ranking else None

    def pack_sizes(self) -> str:
        """A description of the largest pack in the queue; empty if there is none."""
        largest = max(self._ready, key=lambda pack: len(pack.runs), default=None)
        return "" if largest is None else self.size.describe(largest.runs[0], len(largest.runs))

    def _advance(self) -> None:
        """Collect complete trials and queue new ones, until nothing changes."""
        self._collect_complete()
        for study in self.studies:
            # Proposal batch g + 1 is always requested before the outcomes of batch g are reported, also in a replay,
            # where batch g is complete at once, because the proposals depend on that order.
            while self._ask(study) or self._tell(study) or self._finish(study):
                self._collect_complete()
        if self._train_extended():
            self._collect_complete()

    def _collect_complete(self) -> None:
        for name, trial in list(self._open.items()):
            if all(key in self.ledger.finished for key in self._keys[name]):
                self.finished[name] = [self.ledger.finished[key] for key in self._keys[name]]
                del self._open[name]
                if trial.phase == "extended":
                    others = {key for other, keys in self._keys.items() if other != name for key in keys}
                    self.ledger.drop_heads({*self._keys[name]} - others)
                self.on_trial(trial, self.finished[name])

    def _ask(self, study: Study) -> bool:
        with self._timed():
            batch = study.ask()
        if batch:
            self._enqueue("search", batch, study)
        return batch is not None

    def _tell(self, study: Study) -> bool:
        due = study.next_to_report()
        if not due or any(trial.name not in self.finished for trial in due):
            return False
        with self._timed():
            study.tell(self.objective, self.stopped)
        self._drop_heads()
        return True

    def _finish(self, study: Study) -> bool:
        if study.finalists is not None or not study.is_complete():
            return False
        finalists = study.finish(self.ranking("search", study.candidate.name))
        self._enqueue("finalist", finalists, study)
        return True

    def _train_extended(self) -> bool:
        """Queue extended training of the winner once it is final: every trial other than baselines is complete."""
        final = all(study.finalists is not None for study in self.studies)
        if self.extended is not None or not final or any(trial.phase != "baseline" for trial in self._open.values()):
            return False
        winner, self.extended = self.winner(), []
        if winner is None:
            return False
        study = next(study for study in self.studies if study.candidate.name == winner.candidate)
        self.extended = study.extended(winner)
        self._enqueue("extended", self.extended, study)
        return bool(self.extended)

    def _drop_heads(self) -> None:
        """Remove the heads of reported trials that cannot become the champion; finalists have heads of their own."""
        reported = [trial for study in self.studies for trials in study.batches[: study.reported] for trial in trials]
        best = self.ranking("search")[:1]
        # By key, because a duplicate of the best trial shares its heads.
        kept = {key for trial in best for key in self._keys[trial.name]}
        self.ledger.drop_heads({key for trial in reported for key in self._keys[trial.name]} - kept)

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
            keys = self._keys[trial.name] = [self._key(run, phase, pool) for run in trial.runs()]
            for run, key in zip(trial.runs(), keys, strict=True):
                if key in self._wanted:
                    self.cached += 1
                    continue
                self._wanted.add(key)
                keys_of[run] = key
        name = study.pack_name(phase) if study else phase
        halving = functools.partial(self._halving, phase=phase)
        for pack in pack_runs(name, list(keys_of), self._rule(phase), self.size.lanes, halving):
            keys = self._pack_keys[pack.name] = [keys_of[run] for run in pack.runs]
            if all(key in self.ledger.finished for key in keys):
                self.cached += len(keys)
            else:
                self._ready.append(pack)

    def _rule(self, phase: Phase) -> EpochSelection:
        """Which epoch of a run counts; in extended training always the last."""
        return replace(self.rule, epoch="last") if phase == "extended" else self.rule

    def _halving(self, run: Run, phase: Phase) -> Halving | None:
        """How the trials of a run's pack are stopped early; None outside the search: reported runs are complete."""
        if phase != "search" or not run.method.trains:
            return None
        return self.spec.search.early_stopping.halving(run.training)

    def _key(self, run: Run, phase: Phase, pool: str) -> str:
        """A run's key: shared within a candidate and with an identical baseline, but not between candidates.

        Which of two candidates requests a run first depends on timing, and so would the pack of a shared run.
        """
        halving = self._halving(run, phase)
        rule = self._rule(phase)
        as_baseline = run_key(self.bank_fingerprint, run, rule)
        if halving is None and (not pool or as_baseline in self._baselines):
            return as_baseline
        return run_key(self.bank_fingerprint, run, rule, halving, pool)
